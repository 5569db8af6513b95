"""What is added to a paged cache, and where: against a plain cache of one sequence, without vLLM."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import ServingError, VectorError
from factory.serving.entry import RequestError
from factory.serving.library import VectorLibrary
from factory.vector.setting import Setting
from factory.vector.vector import SteeringVector
from factory.vllm.asked import read_asked, settings_of
from factory.vllm.edit import Addition, Edit, first_edited, shard_of, slots_of
from factory.vllm.editor import Editor, PagedLayer
from factory.vllm.layout import BlockLayout, find_layout
from factory.vllm.model import ServedModel, keys_refusal
from tests.conftest import ROOT

BLOCK, HEADS, SIZE = 8, 2, 4


class Options:
    """A configuration of a model, by its attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)


def vector(seed=0, layers=(0, 1), name="calm"):
    numbers = torch.Generator().manual_seed(seed)
    shape = (len(layers), HEADS, SIZE)
    keys, values = torch.randn(shape, generator=numbers), torch.randn(shape, generator=numbers)
    return SteeringVector(name, keys, values, list(layers), "a/model")


def packed_in_pairs(cache):
    """A backend's write that swaps neighbours, and keeps values before keys: [blocks, heads, 2 * block, size]."""

    def write(keys, values, slots):
        for half, numbers in ((1, keys), (0, values)):
            for row, slot in enumerate(slots.tolist()):
                block, place = divmod(slot, BLOCK)
                swapped = numbers[row].reshape(HEADS, -1, 2).flip(-1).reshape(HEADS, SIZE)
                cache[block, :, half * BLOCK + place] = swapped.to(cache.dtype)

    return write


def read(cache, slot):
    block, place = divmod(slot, BLOCK)
    rows = cache[block][:, [BLOCK + place, place]].reshape(HEADS, 2, -1, 2).flip(-1).reshape(HEADS, 2, SIZE)
    return rows[:, 0], rows[:, 1]


def new_cache(dtype=torch.float32, blocks=6):
    return torch.zeros(blocks, HEADS, 2 * BLOCK, SIZE, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strided", [False, True])
def test_a_layout_is_found_whatever_the_order_type_and_strides_of_the_cache(dtype, strided):
    cache = new_cache(dtype)
    if strided:
        cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
    write = packed_in_pairs(cache)
    layout = find_layout(cache, BLOCK, (HEADS, SIZE), write)
    assert not cache.any(), "nothing of the trial stays"
    keys, values = torch.randn(2, 3, HEADS, SIZE).to(dtype)
    slots = torch.tensor([9, 23, 40])
    layout.add(cache, slots, keys, values)
    expected = new_cache(dtype)
    packed_in_pairs(expected)(keys, values, slots)
    assert torch.equal(cache, expected)


def test_a_cache_that_does_not_give_back_its_numbers_is_refused():
    cache = new_cache()

    def halving(keys, values, slots):
        packed_in_pairs(cache)(keys // 2, values, slots)

    with pytest.raises(ServingError, match="kv-cache-dtype auto"):
        find_layout(cache, BLOCK, (HEADS, SIZE), halving)


@settings(max_examples=30, deadline=None)
@given(
    ends=st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=3),
    positions=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    with_keys=st.booleans(),
)
def test_a_paged_cache_gets_what_a_plain_one_gets(ends, positions, with_keys):
    free = torch.randperm(5, generator=torch.Generator().manual_seed(len(ends))) + 1
    caches = {layer: new_cache(blocks=8) for layer in (0, 1)}
    editor = Editor(
        {n: PagedLayer(c, find_layout(c, BLOCK, (HEADS, SIZE), packed_in_pairs(c))) for n, c in caches.items()},
        slice(0, HEADS),
        lambda keys, at: keys * (1 + at[:, None, None]),  # any function of the position
    )
    additions = tuple(
        Addition.of(Setting(vector(n, layers=(n % 2,)), 2.0, 0.5 * with_keys, n_positions))
        for n, n_positions in enumerate(positions)
    )
    edits, owners = [], []
    for number, end in enumerate(ends):
        blocks = [(*free.tolist(), 6)[2 * number], (*free.tolist(), 6)[2 * number + 1]]
        edits.append(Edit(additions, slots_of(blocks, BLOCK, first_edited(end, additions), end), end))
        owners.append(blocks)
    editor.apply(edits)
    for blocks, end in zip(owners, ends, strict=True):
        for layer, cache in caches.items():
            plain_keys, plain_values = torch.zeros(2, 2 * BLOCK, HEADS, SIZE)
            for one in (one for one in additions if layer in one.layers):
                for position in range(max(0, end - one.n_positions), end):
                    plain_values[position] += one.values[0]
                    if one.keys is not None:
                        plain_keys[position] += one.keys[0] * (1 + position)
            for position in range(2 * BLOCK):
                slot = blocks[position // BLOCK] * BLOCK + position % BLOCK
                keys, values = read(cache, slot)
                assert torch.allclose(keys, plain_keys[position], atol=1e-5)
                assert torch.allclose(values, plain_values[position], atol=1e-5)
    assert not any(cache[0].any() for cache in caches.values()), "block 0 belongs to nobody"


@pytest.mark.parametrize(("n_heads", "n_ranks"), [(8, 1), (8, 2), (8, 8), (2, 4), (1, 8), (4, 8)])
def test_ranks_of_tensor_parallelism_hold_every_head_and_repeat_them_evenly(n_heads, n_ranks):
    held = [list(range(n_heads))[shard_of(n_heads, n_ranks, rank)] for rank in range(n_ranks)]
    flat = [head for heads in held for head in heads]
    assert flat == sorted(flat)
    assert {flat.count(head) for head in range(n_heads)} == {max(1, n_ranks // n_heads)}


def test_each_rank_adds_its_own_heads():
    edit = Edit((Addition.of(Setting(vector(), 1.0)),), (BLOCK + 3,), 4)
    whole = []
    for rank in range(2):
        cache = torch.zeros(3, 1, 2 * BLOCK, SIZE)
        places = torch.arange(2 * BLOCK * SIZE).view(2, BLOCK, 1, SIZE)
        Editor({0: PagedLayer(cache, BlockLayout(*places))}, shard_of(HEADS, 2, rank), lambda keys, _: keys).apply(
            [edit]
        )
        whole.append(cache[1, 0, BLOCK + 3])
    assert torch.equal(torch.stack(whole), vector().value_vector[0])


MODEL = ServedModel(("served", "a/model"), "unknown", (HEADS, SIZE), 2)


@pytest.fixture
def library(tmp_path):
    vector().save(tmp_path / "calm.pt")
    vector(1, name="alien", layers=(0, 1, 2)).save(tmp_path / "alien.pt")
    return VectorLibrary([str(tmp_path)], MODEL.check)


def test_a_request_names_vectors_as_svf_serve_takes_them(library):
    asked = read_asked({"steering": [{"vector": "calm", "strength": 3, "layers": [1], "positions": 2}], "other": 1})
    (setting,) = settings_of(asked.steering, library, MODEL)
    assert (setting.strength, setting.key_strength, setting.n_positions) == (3.0, 0.0, 2)
    assert setting.vector.layer_indices == [1]


def test_parameters_that_do_not_speak_of_steering_are_none_of_ours():
    assert read_asked(None) is None
    assert read_asked({"do_remote_prefill": True}) is None


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"vector": "loud"}], "no vector 'loud'; there is calm"),
        ([{"vector": "alien"}], "loaded model is served|loaded model is a/model"),
        ([{"vector": "calm", "loudness": 1}], "loudness"),
        ([{"vector": "calm", "strength": float("nan")}], "strength"),
        ([{"vector": "calm", "layers": "7"}], "layers"),
        ("calm", "list"),
        ([{"vector": "calm"}] * 17, "16"),
    ],
)
def test_what_cannot_be_followed_is_named(library, entries, words):
    with pytest.raises(RequestError, match=words):
        settings_of(read_asked({"steering": entries}).steering, library, MODEL)


def test_a_vector_that_came_after_the_start_is_found(library, tmp_path):
    vector(3, name="late").save(tmp_path / "late.pt")
    assert settings_of(read_asked({"steering": [{"vector": "late"}]}).steering, library, MODEL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_type": "llama3"}, "layer_types": ["full_attention"] * 2}, None),
        ({"rope_parameters": {"rope_type": "longrope"}}, "kind of its own"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}, "several kinds"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "several kinds"),
        ({"no_rope_layers": [1, 0]}, "do not turn"),
    ],
)
def test_keys_are_refused_where_layers_do_not_all_turn_alike(options, words):
    refusal = keys_refusal(Options(**options))
    assert refusal is None if words is None else words in refusal
    if words:
        with pytest.raises(VectorError, match="key_strength 0"):
            ServedModel(("m",), "unknown", (1, 1), 1, refusal).check_keys(Setting(vector(), key_strength=1.0))


def test_no_part_of_the_connector_brings_transformers_or_celery():
    program = (
        "import sys; import factory.vllm.asked, factory.vllm.editor, factory.vllm.layout; "
        "print(sorted({'transformers', 'celery', 'kombu', 'accelerate'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert result.stdout.strip() == "[]"
