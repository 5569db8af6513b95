"""Every supported model family gives the tensors that the naive way gives."""

from __future__ import annotations

import json

import pytest
import torch
from gguf import GGUFWriter
from transformers import Llama4TextConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen3NextConfig

from factory import ContrastivePair, Steering, build_vector, load_target
from factory.errors import PairRejected, TargetError, VectorError
from factory.extraction.recipe import RECIPES, render
from factory.extraction.trial import can_share_passes
from factory.target.gguf import check_gguf
from factory.target.support import check_cache_support
from factory.vector.steer import as_messages, generate_batch
from tests.families import SIZES, family_configs, load_tiny_target, save_tiny_model
from tests.oracle import naive_vector
from tests.target.census import tiny_config

LAYERS = [1, 3]
PAIRS = [
    ContrastivePair(
        question=f"What is {n} plus {n * n}?",
        positive_response="Step 1: look. " * (1 + n % 3) + f"Step 2: say {n + n * n}.",
        negative_response=f"It is {n + n * n}" + ", as one finds quickly" * (n % 4) + ".",
        style="steps",
        positive_prompt="Answer in steps.",
        negative_prompt="Answer plainly.",
    )
    for n in range(9)
]
NARROW = {
    "llama4": Llama4TextConfig(
        **SIZES, head_dim=16, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=64
    ),
    "phi3-longrope": Phi3Config(
        **SIZES,
        original_max_position_embeddings=64,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.fixture(params=family_configs(), scope="module")
def target(request, tmp_path_factory):
    return load_tiny_target(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_vector_is_the_mean_difference_that_the_full_model_gives(target, recipe):
    vector = build_vector(PAIRS, target, recipe=recipe, layers=LAYERS)

    keys, values = naive_vector(PAIRS, target, LAYERS, recipe=recipe)

    assert vector.metadata["pairs_used"] == len(PAIRS)
    torch.testing.assert_close(vector.value_vector, values, atol=1e-5, rtol=0)
    torch.testing.assert_close(vector.key_vector, keys, atol=1e-5, rtol=0)


def test_steering_a_family_with_strength_zero_changes_nothing(target):
    vector = build_vector(PAIRS, target, recipe="response_last", layers="all")
    asked = [as_messages("Why?"), as_messages("How does a longer question fare?")]

    plain = generate_batch(target, asked, max_new_tokens=8)
    zero = generate_batch(target, asked, steering=Steering(vector, 0.0), max_new_tokens=8)
    strong = generate_batch(target, asked, steering=Steering(vector, 50.0, key_strength=5.0), max_new_tokens=8)

    assert zero == plain
    assert strong != plain


def test_a_model_without_a_cache_of_every_token_is_refused_with_the_reason():
    with pytest.raises(TargetError, match="linear_attention"):
        check_cache_support(Qwen3NextConfig(), "hybrid")


def test_a_text_beyond_a_sliding_window_is_refused_instead_of_read_wrongly(tmp_path):
    config = MistralConfig(**SIZES, sliding_window=64)
    narrow = load_target(str(save_tiny_model(tmp_path, config)), "cpu")

    with pytest.raises(PairRejected, match="at most 64") as refusal:
        render(PAIRS[0], narrow, recipe="fewshot", pairs=PAIRS)

    assert refusal.value.reason == "too_long"


@pytest.mark.parametrize("family", ["gpt_oss", "bloom", "mpt"])
def test_a_model_without_fused_attention_runs_with_its_own(family, tmp_path):
    eager = load_target(str(save_tiny_model(tmp_path, tiny_config(family))), "cpu")

    assert eager.model.config._attn_implementation == "eager"
    vector = build_vector(PAIRS[:2], eager, layers=LAYERS)
    torch.testing.assert_close(vector.value_vector, naive_vector(PAIRS[:2], eager, LAYERS)[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("deepseek_v2", "not all of one shape .*latent attention"),
        ("deepseek_v3", "not all of one shape .*latent attention"),
        ("gemma4_text", "2 heads of 16, 2 heads of 32"),
        ("deepseek_v32", "cannot read a token into a cache"),
        ("roberta", "positions count from 0 otherwise"),
        ("bart", "behind padding otherwise"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_as_it_is_loaded(family, why, tmp_path):
    with pytest.raises(TargetError, match=why) as refusal:
        load_target(str(save_tiny_model(tmp_path, tiny_config(family))), "cpu")

    assert "Choose another model" in str(refusal.value)


def test_keys_that_cannot_be_turned_back_are_refused_and_values_steer_all_the_same(tmp_path):
    gptj = load_target(str(save_tiny_model(tmp_path, tiny_config("gptj"))), "cpu")
    vector = build_vector(PAIRS[:2], gptj, layers=LAYERS)
    asked = [as_messages("Why?")]

    torch.testing.assert_close(vector.value_vector, naive_vector(PAIRS[:2], gptj, LAYERS)[1], atol=1e-5, rtol=0)
    assert vector.extraction_config["keys"].startswith("none: the model turns its keys")
    plain, steered = (generate_batch(gptj, asked, steering=Steering(vector, s), max_new_tokens=8) for s in (0.0, 50.0))
    assert steered != plain
    with pytest.raises(VectorError, match="Use key_strength 0: its values steer"):
        generate_batch(gptj, asked, steering=Steering(vector, 1.0, key_strength=1.0), max_new_tokens=1)


@pytest.mark.parametrize("family", ["llama4", "phi3-longrope"])
def test_what_a_narrower_layer_or_the_short_factors_of_longrope_reach_limits_a_text(family, tmp_path):
    narrow = load_target(str(save_tiny_model(tmp_path, NARROW[family])), "cpu")

    assert narrow.longest_text == 64
    with pytest.raises(PairRejected, match=rf"at most 64 are read \(the model's {narrow.limited_by}") as refusal:
        render(PAIRS[0], narrow, recipe="fewshot", pairs=PAIRS)
    assert refusal.value.reason == "too_long"


def test_attention_that_takes_apart_what_the_cache_gives_reads_each_text_by_itself(tmp_path):
    diffllama = load_target(str(save_tiny_model(tmp_path, tiny_config("diffllama"))), "cpu")

    assert not can_share_passes(diffllama)
    vector = build_vector(PAIRS[:2], diffllama, layers=LAYERS)
    keys, values = naive_vector(PAIRS[:2], diffllama, LAYERS)
    torch.testing.assert_close(vector.value_vector, values, atol=1e-5, rtol=0)
    torch.testing.assert_close(vector.key_vector, keys, atol=1e-5, rtol=0)


def test_a_checkpoint_that_was_saved_without_a_cache_answers_as_with_one(tmp_path):
    # as fine-tuning with gradient checkpointing leaves it
    folder = save_tiny_model(tmp_path, family_configs()["llama"])
    asked = [as_messages("How does a longer question fare?")]
    usual = generate_batch(load_target(str(folder), "cpu"), asked, max_new_tokens=8)
    for name in ("config.json", "generation_config.json"):
        text = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(text | {"use_cache": False}))

    assert generate_batch(load_target(str(folder), "cpu"), asked, max_new_tokens=8) == usual


def test_a_model_that_counts_padding_as_it_goes_on_answers_one_by_one(tmp_path):
    whisper = load_target(str(save_tiny_model(tmp_path, tiny_config("whisper"))), "cpu")
    asked = [as_messages("Why?"), as_messages("How does a longer question fare?")]

    assert not whisper.can_pad
    together = generate_batch(whisper, asked, max_new_tokens=8)
    assert together == [generate_batch(whisper, [messages], max_new_tokens=8)[0] for messages in asked]


def _gguf(folder, **header):
    """A GGUF file with a header alone."""
    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    for name, (kind, value) in header.items():
        getattr(writer, f"add_{kind}")("llama." + name.replace("__", "."), value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return folder / "tiny.gguf"


def test_a_gguf_file_whose_rope_scaling_or_head_size_is_not_read_is_refused(tmp_path):
    config = LlamaConfig(**SIZES)  # heads of 8

    check_gguf(_gguf(tmp_path, rope__scaling__type=("string", "none")), config)
    with pytest.raises(TargetError, match=r"rope scaling \(yarn\).*folder of safetensors"):
        check_gguf(_gguf(tmp_path, rope__scaling__type=("string", "yarn")), config)
    with pytest.raises(TargetError, match=r"heads have 96 numbers.*expected 8"):
        check_gguf(_gguf(tmp_path, attention__key_length=("uint32", 96)), config)
