"""A forward pass for reading leaves out what nobody reads, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory import ContrastivePair, build_vector
from factory.extraction import forward
from factory.extraction.forward import attend_blockwise, reading
from factory.extraction.trial import can_share_passes
from tests.families import family_configs, load_tiny_target
from tests.oracle import naive_vector

PAIRS = [
    ContrastivePair(f"Is {n} odd?", f"Step 1: halve {n}. " * 3, f"One halves {n}. " * 3, "steps") for n in range(9)
]


@given(n_tokens=st.integers(1, 300), prefix=st.integers(0, 150), padded=st.integers(0, 40), seed=st.integers(0, 99))
def test_attention_in_blocks_is_attention(n_tokens, prefix, padded, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 6, n_tokens, 8, generator=generator)
    key, value = torch.randn(2, 2, 3, prefix + n_tokens, 8, generator=generator).transpose(1, 2).unbind(2)
    key, value = key[:, :3].contiguous(), value[:, :3].contiguous()
    hidden = torch.ones(n_tokens, prefix + n_tokens).triu(prefix + 1)
    hidden[:, : min(padded, prefix)] = 1  # as where a row's own prefix is shorter
    mask = (hidden * torch.finfo(torch.float32).min)[None, None]

    output, _ = attend_blockwise(torch.nn.Identity(), query, key, value, mask, scaling=0.3)

    wide_key, wide_value = (states.repeat_interleave(2, dim=1) for states in (key, value))
    scores = (0.3 * query @ wide_key.transpose(2, 3) + mask).softmax(-1)
    torch.testing.assert_close(output, (scores @ wide_value).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", family_configs())
def test_the_model_is_as_it_was_after_an_error(family, tmp_path):
    target = load_tiny_target(tmp_path, family)
    ids = target.tensor([[5, 6, 7, 8]])
    before = target.model(ids).logits

    with pytest.raises(RuntimeError, match="stop"), reading(target, last_layer=2, packed=can_share_passes(target)):
        raise RuntimeError("stop")

    assert torch.equal(target.model(ids).logits, before)


def test_the_last_layer_makes_no_queries(tmp_path):
    target = load_tiny_target(tmp_path)
    assert can_share_passes(target)  # its trial runs the whole model once
    asked = []
    for number, layer in enumerate(target.model.base_model.layers):
        projection = layer.self_attn.q_proj
        usual = projection.forward
        projection.forward = lambda hidden, usual=usual, number=number: (asked.append(number), usual(hidden))[1]

    build_vector(PAIRS, target, layers=[1, 3])

    assert set(asked) == {0, 1, 2}


def test_in_bfloat16_sums_between_layers_keep_what_a_vector_is_made_of(tmp_path):
    # Given a model whose stream is much larger than what its layers add to it, as real models' are
    exact, rounded = (load_tiny_target(tmp_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    with torch.no_grad():
        exact.model.get_input_embeddings().weight.mul_(64)
        rounded.model.get_input_embeddings().weight.mul_(64)
    _, truth = naive_vector(PAIRS, exact, [4])
    _, naive = naive_vector(PAIRS, rounded, [4])

    ours = build_vector(PAIRS, rounded, layers=[4]).value_vector

    assert (ours - truth).norm() < 0.5 * (naive - truth).norm()


@pytest.mark.parametrize("family", family_configs())
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attentions_of_other_devices_read_the_same(family, attention, tmp_path, monkeypatch):
    target = load_tiny_target(tmp_path, family)
    in_blocks = build_vector(PAIRS, target, layers=[1, 4])

    if target.model.config._attn_implementation == "sdpa":
        monkeypatch.setattr(forward, "attention_of_a_segment", lambda target: attention)
    plain = build_vector(PAIRS, target, layers=[1, 4])

    torch.testing.assert_close(plain.value_vector, in_blocks.value_vector, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.key_vector, in_blocks.key_vector, atol=1e-5, rtol=0)


def test_a_quantised_model_is_read_in_its_own_dtype(tmp_path):
    # Given a bfloat16 model that says of itself what one with 8-bit weights does
    plain, quantised = (load_tiny_target(tmp_path, dtype="bfloat16") for _ in range(2))
    quantised.model.is_loaded_in_8bit = True
    streams = []
    layer = quantised.model.base_model.layers[1]
    layer.register_forward_pre_hook(lambda module, given: streams.append(given[0].dtype))

    vector = build_vector(PAIRS, quantised, layers=[1, 4])

    assert set(streams) == {torch.bfloat16}
    assert vector.extraction_config["dtype"] == "bfloat16+int8"
    assert vector.cosine(build_vector(PAIRS, plain, layers=[1, 4])) > 0.99
