"""Steering: exactly once, at the right place, and nothing else changes."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from factory import build_vector
from factory.errors import VectorError
from factory.vector.recommendation import Recommendation, without_recommendation
from factory.vector.steer import (
    Steering,
    as_messages,
    generate,
    generate_batch,
    left_padded,
    positions_of,
    steered_cache,
)
from factory.vector.vector import SteeringVector
from tests.families import family_configs, load_tiny_target

QUESTIONS = ["Why is the sky blue?", "How?", "What would a city without any cars at all look like in winter?"]


def make_vector(target, *, layers=None, scale=1.0, seed=1) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    layers = list(range(target.n_layers)) if layers is None else layers
    shape = (len(layers), *target.shape)
    keys, values = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    return SteeringVector("planted", keys, values, layers, target.name)


def plain_tokens(target, question: str, n: int) -> list[int]:
    """What plain ``generate`` says, with no cache of ours."""
    ids = torch.tensor([[*target.prompt_ids(as_messages(question)), target.neutral_id]])
    output = target.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n, pad_token_id=0
    )
    return output[0, ids.shape[1] :].tolist()


def decoded(target, tokens: list[int]) -> str:
    return target.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def caches(target, questions, steering):
    """The cache with and without the vector, and the mask of what it holds."""
    ids, mask = left_padded(target, [[*target.prompt_ids(as_messages(q)), target.neutral_id] for q in questions])
    return steered_cache(target, ids, mask, steering), steered_cache(target, ids, mask, None), mask[:, :-1]


@pytest.mark.parametrize("family", list(family_configs()))
def test_strength_zero_equals_plain_generate_token_for_token(family, tmp_path):
    target = load_tiny_target(tmp_path, family)
    nothing = Steering(make_vector(target), strength=0.0, key_strength=0.0)
    for question in QUESTIONS:
        answer = generate_batch(target, [as_messages(question)], steering=nothing, max_new_tokens=12)[0]
        assert answer == decoded(target, plain_tokens(target, question, 12))


def test_a_batch_of_different_lengths_answers_like_each_question_alone(target):
    steering = Steering(make_vector(target), strength=3.0, key_strength=1.0, n_positions=2)
    together = generate_batch(target, [as_messages(q) for q in QUESTIONS], steering=steering, max_new_tokens=10)
    alone = [generate_batch(target, [as_messages(q)], steering=steering, max_new_tokens=10)[0] for q in QUESTIONS]
    assert together == alone


@pytest.mark.parametrize("n_positions", [1, 4])
def test_values_change_at_the_last_positions_alone_and_by_the_vector_times_its_strength(target, n_positions):
    vector = make_vector(target, layers=[1, 3])
    steered, plain, _ = caches(target, QUESTIONS, Steering(vector, strength=2.5, n_positions=n_positions))
    for layer in range(target.n_layers):
        change = steered.layers[layer].values - plain.layers[layer].values
        assert torch.equal(steered.layers[layer].keys, plain.layers[layer].keys)
        if layer not in vector.layer_indices:
            assert not change.any()
            continue
        expected = 2.5 * vector.value_vector[vector.layer_indices.index(layer)]
        window = change[:, :, -n_positions:]
        torch.testing.assert_close(window, expected[None, :, None].expand_as(window), atol=1e-5, rtol=0)
        assert not change[:, :, :-n_positions].any()


def test_keys_are_rotated_forward_to_each_rows_own_position(target):
    vector = make_vector(target, layers=[0, 2])
    steered, plain, mask = caches(target, QUESTIONS, Steering(vector, strength=0.0, key_strength=1.5, n_positions=2))
    positions = positions_of(mask)
    assert len({int(row[-1]) for row in positions}) == len(QUESTIONS)  # else the test would not tell
    for row in range(len(QUESTIONS)):
        for column in (-2, -1):
            at = positions[row, column].reshape(1, 1)
            for index, layer in enumerate(vector.layer_indices):
                key = 1.5 * vector.key_vector[index][None, :, None]  # [1, n_kv_heads, 1, head_dim]
                cos, sin = target.model.model.rotary_emb(key, at)
                expected = apply_rotary_pos_emb(key, key, cos, sin)[0][0, :, 0]
                change = steered.layers[layer].keys - plain.layers[layer].keys
                torch.testing.assert_close(change[row, :, column], expected, atol=1e-4, rtol=0)


def test_a_strong_vector_changes_the_answer_and_its_negation_differently(target):
    vector = make_vector(target, scale=20.0)
    plain = generate(target, QUESTIONS[0], max_new_tokens=12)
    steered = generate(target, QUESTIONS[0], vector=vector, strength=5, max_new_tokens=12)
    negated = generate(target, QUESTIONS[0], vector=vector, strength=-5, max_new_tokens=12)
    assert len({plain, steered, negated}) == 3


def test_a_sum_of_vectors_steers_like_both_at_once(target):
    one, two = make_vector(target, seed=1), make_vector(target, seed=2)
    both = Steering(0.5 * one + 2.0 * two, strength=1.0)
    steered, plain, _ = caches(target, QUESTIONS[:1], both)
    expected = 0.5 * one.value_vector + 2.0 * two.value_vector
    for layer in range(target.n_layers):
        change = (steered.layers[layer].values - plain.layers[layer].values)[0, :, -1]
        torch.testing.assert_close(change, expected[layer], atol=1e-5, rtol=0)


def test_a_vector_is_added_at_what_its_evaluation_recommends(target):
    known = {
        "recommended_strength": 7.0,
        "recommended_layers": [1, 2],
        "recommended_positions": 4,
        "recommended_key_strength": 0.5,
    }
    vector = replace(make_vector(target), metadata=known)
    steering = Steering.recommended(vector)
    assert (steering.strength, steering.n_positions, steering.key_strength) == (7.0, 4, 0.5)
    assert steering.vector.layer_indices == [1, 2]
    assert Steering.recommended(vector, strength=2.0).strength == 2.0


def test_a_recommendation_is_read_as_it_was_written_and_replaces_the_one_before():
    before = {"recommended_layers": [3], "recommended_key_strength": 0.5, "description": "kept"}
    best = Recommendation(strength=2.0, positions=4)
    written = best.written_into(before)
    assert written == {"description": "kept", "recommended_strength": 2.0, "recommended_positions": 4}
    assert Recommendation.read(written) == best
    assert without_recommendation(written) == {"description": "kept"}
    assert Recommendation.read({"description": "kept"}) is None


def test_a_recommendation_that_is_no_number_is_named(target):
    vector = replace(make_vector(target), metadata={"recommended_strength": "much"})
    with pytest.raises(VectorError, match="recommended_strength.*'much'"):
        Steering.recommended(vector)


def test_sampling_with_a_seed_repeats_itself_and_streams(target):
    from transformers import TextStreamer

    class Collected(TextStreamer):
        said = ""

        def on_finalized_text(self, text, stream_end=False):
            self.said += text

    vector, streamer = make_vector(target), Collected(target.tokenizer, skip_prompt=True)
    answers = []
    for extra in ({}, {"streamer": streamer}):
        torch.manual_seed(5)
        answers.append(
            generate(
                target,
                QUESTIONS[0],
                vector=vector,
                strength=1.0,
                max_new_tokens=10,
                do_sample=True,
                temperature=0.9,
                **extra,
            )
        )
    assert answers[0] == answers[1]
    assert streamer.said.strip()


def test_a_vector_of_another_model_is_refused_by_both_names(target):
    vector = replace(make_vector(target), model_name="somebody/else")
    with pytest.raises(VectorError, match="somebody/else") as error:
        generate(target, "Why?", vector=vector)
    assert target.name in str(error.value)


def test_other_weights_under_the_same_name_are_noticed_by_their_revision(target, caplog):
    vector = replace(make_vector(target), extraction_config={"model_revision": "0" * 32})
    with caplog.at_level(logging.WARNING, logger="factory"):
        generate(target, "Why?", vector=vector, max_new_tokens=2)
    assert f"revision {'0' * 32}" in caplog.text
    assert target.revision in caplog.text


def test_the_same_weights_steer_whatever_their_folder_is_called(target, caplog):
    vector = replace(
        make_vector(target), model_name="/moved/away", extraction_config={"model_revision": target.revision}
    )
    with caplog.at_level(logging.WARNING, logger="factory"):
        generate(target, "Why?", vector=vector, max_new_tokens=2)
    assert not caplog.text


def test_more_positions_than_a_prompt_has_steer_all_of_them(target):
    n_cached = len(target.prompt_ids(as_messages("How?")))
    vector = make_vector(target, layers=[1])
    many, all_of_them = (
        caches(target, ["How?"], Steering(vector, n_positions=n, key_strength=1.0))[0] for n in (n_cached + 9, n_cached)
    )
    assert torch.equal(many.layers[1].values, all_of_them.layers[1].values)
    assert torch.equal(many.layers[1].keys, all_of_them.layers[1].keys)
    with pytest.raises(VectorError, match="1 position or more"):
        Steering(vector, n_positions=0)


def test_threads_that_read_and_answer_with_one_model_take_turns(target, starter_pairs):
    def read():
        return build_vector(starter_pairs[:4], target, recipe="response_last").to_pt()

    def answer():
        return generate(target, QUESTIONS[0], max_new_tokens=6)

    alone = read(), answer()
    with ThreadPoolExecutor(4) as pool:
        together = [(pool.submit(read), pool.submit(answer)) for _ in range(6)]
        assert [(one.result(), other.result()) for one, other in together] == [alone] * 6
