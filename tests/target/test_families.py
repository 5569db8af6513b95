"""Every supported model family gives the tensors that the naive way gives."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, Qwen3NextConfig

from factory import ContrastivePair, Steering, build_vector, load_target
from factory.errors import PairRejected, TargetError
from factory.extraction.recipe import RECIPES, render
from factory.target.kv import check_cache_support
from factory.vector.steer import as_messages, generate_batch
from tests.families import SIZES, family_configs, load_tiny_target, save_tiny_model
from tests.oracle import naive_vector

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
