"""Vectors are values: their algebra holds, their files are exact, and foreign files are refused."""

import io
import pickle
import random
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import VectorError
from factory.vector.statistics import PartialSum
from factory.vector.vector import FIELDS, SteeringVector

SHAPE = (3, 2, 4)  # [n_layers, n_kv_heads, head_dim]
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(-8, 8, allow_subnormal=False)


def make_vector(seed=0, *, model="a-model", layers=(1, 4, 5), name=None):
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, *SHAPE, generator=generator)
    return SteeringVector(
        style_name=name or f"style-{seed}",
        key_vector=keys,
        value_vector=values,
        layer_indices=list(layers),
        model_name=model,
        metadata={"description": "ü", "pairs_used": seed, "quality": {"convergence": [[2, 0.5]]}, "none": None},
        extraction_config={"recipe": "fewshot", "target_layers": list(layers), "n_tokens": None},
    )


vectors = st.builds(make_vector, seeds)


def close(first, second):
    return torch.allclose(first.value_vector, second.value_vector, rtol=1e-5, atol=1e-4) and torch.allclose(
        first.key_vector, second.key_vector, rtol=1e-5, atol=1e-4
    )


# ---- algebra


@given(vectors, vectors, vectors)
def test_addition_commutes_and_associates(a, b, c):
    assert close(a + b, b + a)
    assert close((a + b) + c, a + (b + c))


@given(vectors, vectors)
def test_subtraction_is_adding_the_negative(a, b):
    assert close(a - b, a + (-b))
    negative = -a
    assert close(-negative, a)
    assert float((a - a).value_vector.abs().max()) == 0


@given(vectors, vectors, factors, factors)
def test_numbers_distribute_over_vectors(a, b, x, y):
    assert close(x * (a + b), x * a + x * b)
    assert close((x + y) * a, x * a + y * a)
    assert close(x * (y * a), (x * y) * a)
    assert close(x * a, a * x)


@given(vectors, st.floats(0.1, 8))
def test_dividing_undoes_multiplying(a, x):
    assert close(a * x / x, a)


@given(vectors)
def test_arithmetic_leaves_its_operands_alone(a):
    before = a.to_pt()
    a + a, a - a, 2 * a, -a, a / 2
    assert a.to_pt() == before


def test_a_derived_vector_says_how_and_drops_what_was_measured_on_its_parents():
    a, b = make_vector(1, name="calm"), make_vector(2, name="bold")
    mixed = 0.5 * (a - b)
    assert mixed.style_name == "0.5 * (calm - bold)"
    assert (a - (b + a)).style_name == "calm - (bold + calm)"
    assert "pairs_used" not in mixed.metadata
    assert mixed.extraction_config == a.extraction_config


@pytest.mark.parametrize("other", [make_vector(model="another-model"), make_vector(layers=(1, 4, 6))])
def test_vectors_of_another_model_or_layers_do_not_combine(other):
    with pytest.raises(VectorError, match="Only vectors of the same model and layers combine"):
        make_vector() + other


@given(vectors)
def test_fewer_layers_are_the_same_rows(a):
    part = a.at_layers([5, 1])
    assert part.layer_indices == [5, 1]
    assert torch.equal(part.value_vector, a.value_vector[[2, 0]])
    with pytest.raises(VectorError, match=r"not \[7\]"):
        a.at_layers([1, 7])


@given(vectors, st.floats(0.1, 9))
def test_cosine_is_one_with_itself_and_minus_one_with_its_negative(a, x):
    assert a.cosine(x * a) == pytest.approx(1)
    assert a.cosine(-x * a) == pytest.approx(-1)


@given(vectors)
def test_norms_are_those_of_each_layer(a):
    for kind, tensor in (("keys", a.key_vector), ("values", a.value_vector)):
        naive = [sum(float(x) ** 2 for x in layer.flatten()) ** 0.5 for layer in tensor]
        assert a.norms()[kind] == pytest.approx(naive, rel=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(VectorError, match="n_layers"):
        SteeringVector("s", torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), [0, 1], "m")
    with pytest.raises(VectorError, match="n_layers"):
        SteeringVector("s", torch.zeros(3, 2, 4), torch.zeros(3, 2, 5), [0, 1, 2], "m")


# ---- files


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@given(vector=vectors)
def test_a_saved_vector_loads_as_it_was(tmp_path_factory, ending, vector):
    path = tmp_path_factory.mktemp("vectors") / f"v{ending}"
    vector.save(path)
    loaded = SteeringVector.load(path)
    assert loaded == vector
    assert [getattr(loaded, name) for name in FIELDS if not name.endswith("_vector")] == [
        getattr(vector, name) for name in FIELDS if not name.endswith("_vector")
    ]


@given(seeds)
def test_the_same_vector_gives_the_same_bytes(seed):
    assert make_vector(seed).to_pt() == make_vector(seed).to_pt()
    assert make_vector(seed).to_safetensors() == make_vector(seed).to_safetensors()
    loaded = SteeringVector.from_bytes(make_vector(seed).to_pt(), "v.pt")
    assert loaded.to_pt() == make_vector(seed).to_pt()


def test_the_pt_file_opens_with_plain_torch_and_holds_the_documented_fields(tmp_path):
    make_vector().save(tmp_path / "v.pt")
    content = torch.load(tmp_path / "v.pt", weights_only=True)
    assert list(content) == list(FIELDS)
    assert content["key_vector"].dtype == content["value_vector"].dtype == torch.float32
    assert content["key_vector"].shape == SHAPE
    assert content["format_version"] == 1
    assert isinstance(content["layer_indices"], list)


def test_both_tensors_of_a_file_own_their_numbers(tmp_path):
    vector = make_vector()
    part = vector.at_layers([1])  # a view in memory, a tensor of its own in the file
    assert len(part.to_pt()) < len(vector.to_pt())


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/a-pickle-was-executed", "w"))


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def fields(**changes):
    vector = make_vector()
    return {name: getattr(vector, name) for name in FIELDS} | changes


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "hello")
    return buffer.getvalue()


FOREIGN = {
    "empty.pt": b"",
    "text.pt": b"hello, I am no vector",
    "pickle.pt": pickle.dumps({"key_vector": 1}),
    "evil.pt": pickle.dumps(Evil()),
    "evil-torch.pt": saved({"style_name": Evil()}),
    "zip.pt": zipped(),
    "cut.pt": make_vector().to_pt()[:-100],
    "tensor.pt": saved(torch.zeros(3)),
    "weights.pt": saved({"layer.weight": torch.zeros(3, 3)}),
    "list.pt": saved([1, 2]),
    "other-dtype.pt": saved(fields(key_vector=torch.zeros(SHAPE, dtype=torch.float64))),
    "no-tensor.pt": saved(fields(value_vector=[1.0])),
    "newer.pt": saved(fields(format_version=99)),
    "odd-version.pt": saved(fields(format_version="1")),
    "odd-layers.pt": saved(fields(layer_indices="1,4,5")),
    "odd-name.pt": saved(fields(style_name=7)),
    "odd-metadata.pt": saved(fields(metadata=None)),
    "shape.pt": saved(fields(layer_indices=[1])),
    "empty.safetensors": b"",
    "text.safetensors": b"hello, I am no vector",
    "cut.safetensors": make_vector().to_safetensors()[:-8],
    "plain.safetensors": struct.pack("<Q", 2) + b"{}",
    "odd-header.safetensors": struct.pack("<Q", 4) + b"[1] ",
    "headless.safetensors": struct.pack("<Q", 2**60) + b"{}",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_by_its_name_and_not_executed(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FOREIGN[name])
    with pytest.raises(VectorError) as caught:
        SteeringVector.load(path)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(VectorError, match=str(path)):
            SteeringVector.load(path)


# ---- the running sum


def differences(seed, n):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(n, 1, 1, 1, generator=generator) * 100
    return torch.randn(n, *SHAPE, generator=generator) * scale, torch.randn(n, *SHAPE, generator=generator) * scale


@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_parts_added_in_any_order_give_the_same_bits(seed, sizes):
    parts = [differences(seed + number, size) for number, size in enumerate(sizes)]
    means = []
    for order in range(4):
        random.Random(order).shuffle(parts)
        total = PartialSum.zero(SHAPE)
        for part in parts:
            total.add(*part)
        means.append(total.mean())
    assert all(torch.equal(keys, means[0][0]) and torch.equal(values, means[0][1]) for keys, values in means)


@given(seeds, st.integers(1, 40))
def test_the_mean_is_the_plain_mean(seed, n):
    keys, values = differences(seed, n)
    total = PartialSum.zero(SHAPE)
    total.add(keys, values)
    assert total.count == n
    mean_keys, mean_values = total.mean()
    assert torch.allclose(mean_keys, keys.double().mean(dim=0).float(), rtol=1e-6, atol=1e-7)
    assert torch.allclose(mean_values, values.double().mean(dim=0).float(), rtol=1e-6, atol=1e-7)
    assert mean_values.dtype == torch.float32


def test_nothing_has_no_mean():
    with pytest.raises(VectorError, match="no difference to average"):
        PartialSum.zero(SHAPE).mean()
