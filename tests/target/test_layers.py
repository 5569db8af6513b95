"""Layers as a person writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import LayerError
from factory.target.download import count_layers
from factory.target.layers import check_layers, parse_layers


@given(st.integers(1, 80), st.data())
def test_a_list_a_range_and_text_mean_the_same(n_layers, data):
    first = data.draw(st.integers(0, n_layers - 1))
    last = data.draw(st.integers(first, n_layers - 1))
    expected = list(range(first, last + 1))
    assert parse_layers(expected, n_layers) == expected
    assert parse_layers(range(first, last + 1), n_layers) == expected
    assert parse_layers(f"{first}-{last}", n_layers) == expected
    assert parse_layers(",".join(map(str, reversed(expected))), n_layers) == expected
    assert parse_layers(last, n_layers) == [last]
    assert parse_layers("all", n_layers) == list(range(n_layers))


def test_ranges_and_single_layers_mix_and_repeats_count_once():
    assert parse_layers(" 8-10, 20 ,9", 24) == [8, 9, 10, 20]


@pytest.mark.parametrize("layers", ["", "8-", "-1", "a", "8..9", "all,1", [], [-1], [24], 24, "20-30", "9-8", range(0)])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(LayerError):
        parse_layers(layers, 24)


def test_without_the_model_only_the_text_is_checked():
    for fine in ("all", "8-15,20", [400], 3):
        check_layers(fine, None)
    with pytest.raises(LayerError):
        check_layers("eight", None)


def test_layers_are_counted_without_loading_a_model(target_folder, tmp_path, monkeypatch):
    assert count_layers(str(target_folder)) == 4
    assert count_layers("some-hub/model") is None
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 7}}')
    assert count_layers(str(tmp_path)) == 7
    for broken in ("", "[]", "{}", '{"num_hidden_layers": "x"}'):
        (tmp_path / "config.json").write_text(broken)
        assert count_layers(str(tmp_path)) is None
    monkeypatch.setenv("FACTORY_CACHE_DIR", str(tmp_path))
    assert count_layers("smollm2-135m-instruct") is None
