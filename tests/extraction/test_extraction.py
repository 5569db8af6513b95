"""Differences are exactly those that the model's cache holds, however texts are put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import ContrastivePair, Recipe, build_vector, render
from factory.errors import DatasetError, PairRejected, StyleFailed
from factory.extraction.extract import extract_batch, read_states
from factory.extraction.prefix import share_prefixes
from factory.pairs.pair import cut_batches, number_batches
from tests.families import load_tiny_target
from tests.oracle import naive_states

LAYERS = [0, 2, 4]
texts_of_bytes = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=60), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return load_tiny_target(tmp_path_factory.mktemp("tiny"))


def make_pair(n: int, positive: str = "Step 1: think. Step 2: answer.", negative: str = "One thinks and answers."):
    prompts = {"positive_prompt": "Answer in steps.", "negative_prompt": "Answer plainly."}
    return ContrastivePair(f"Question number {n}?", f"{positive} ({n})", f"{negative} ({n})", "steps", **prompts)


def make_pairs(count: int) -> list[ContrastivePair]:
    return [make_pair(n, positive="Step 1: wait. " * (1 + n % 5) + "Step 2: go.") for n in range(count)]


@settings(max_examples=25)
@given(texts=texts_of_bytes, budget=st.sampled_from([1, 40, 300, 4096]), draw=st.randoms(use_true_random=False))
def test_any_batching_of_any_texts_gives_the_states_of_each_text_alone(target, texts, budget, draw):
    # few different tokens, so that texts share beginnings, repeat, and contain each other
    positions = [sorted(draw.sample(range(len(text)), draw.randint(1, len(text)))) for text in texts]

    together = read_states(texts, positions, target, LAYERS, batch_tokens=budget)

    for text, at, states in zip(texts, positions, together, strict=True):
        keys, values = naive_states(target, text, at, LAYERS)
        torch.testing.assert_close(states.keys, keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(states.values, values, atol=1e-5, rtol=0)


@given(texts=texts_of_bytes)
def test_segments_put_together_are_the_texts_and_stand_once(texts):
    segments = share_prefixes(texts, [len(text) - 1 for text in texts])

    rebuilt = {}
    for segment in segments:
        whole, parent = list(segment.ids), segment.parent
        while parent is not None:
            whole, parent = parent.ids + whole, parent.parent
        if segment.text is not None:
            rebuilt[segment.text] = whole
    assert rebuilt == dict(enumerate(texts))
    assert sum(len(segment.ids) for segment in segments) <= sum(map(len, texts))
    assert all(segment.ids for segment in segments)
    for number, segment in enumerate(segments):
        assert segment.parent is None or segments.index(segment.parent) < number


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("recipe", ["fewshot", "response_mean", "response_last", "system_prompt"])
def test_the_tokenizers_padding_side_and_the_forward_passes_size_change_nothing(target, recipe, side):
    pairs = make_pairs(10)
    target.tokenizer.padding_side = side

    wide = build_vector(pairs, target, recipe=recipe, layers=LAYERS)
    narrow = build_vector(pairs, target, recipe=recipe, layers=LAYERS, batch_tokens=1)

    torch.testing.assert_close(wide.value_vector, narrow.value_vector, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide.key_vector, narrow.key_vector, atol=1e-5, rtol=0)


def test_the_same_batch_gives_the_same_bytes(target):
    first, second = (build_vector(make_pairs(20), target, layers="all") for _ in range(2))
    assert first.to_pt() == second.to_pt()


def test_more_pairs_add_batches_and_change_none(target):
    first = number_batches(make_pairs(5), batch_size=4)
    more = first + number_batches([make_pair(n) for n in range(50, 56)], batch_size=4, start=2)

    for batch, same in zip(cut_batches(first), cut_batches(more), strict=False):
        before, after = (extract_batch(b, target, LAYERS, Recipe()) for b in (batch, same))
        assert torch.equal(before.values, after.values)


def test_a_planted_direction_is_recovered(tmp_path):
    # Given a model that passes embeddings through untouched, whose '!' and '.' differ by what we plant
    planted = load_tiny_target(tmp_path)
    model = planted.model
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        signs = torch.where(torch.rand(2, 32) < 0.5, -1.0, 1.0)  # of length sqrt(32): the norm leaves them as they are
        exclamation, stop = (planted.tokenizer.convert_tokens_to_ids(mark) for mark in "!.")
        model.base_model.embed_tokens.weight[exclamation] = signs[0]
        model.base_model.embed_tokens.weight[stop] = signs[1]
    pairs = [ContrastivePair(f"Is {n} odd?", f"So it is{n}!", f"So it is{n}.", "loud") for n in range(7)]

    vector = build_vector(pairs, planted, recipe="response_last", layers=[2])

    projection = model.base_model.layers[2].self_attn.v_proj.weight
    truth = (projection @ (signs[0] - signs[1])).view(planted.shape)
    torch.testing.assert_close(vector.value_vector[0], truth, atol=1e-4, rtol=1e-5)


def test_values_agree_with_steering_vectors(target):
    from steering_vectors import SteeringVectorTrainingSample, train_steering_vector

    pairs = make_pairs(6)
    texts = [render(pair, target, recipe="response_last") for pair in pairs]
    samples = [
        SteeringVectorTrainingSample(target.tokenizer.decode(t.positive_ids), target.tokenizer.decode(t.negative_ids))
        for t in texts
    ]
    theirs = train_steering_vector(
        target.model,
        target.tokenizer,
        samples,
        layers=LAYERS,
        layer_type="self_attn",
        layer_config={"self_attn": "model.layers.{num}.self_attn.v_proj"},
    )

    ours = build_vector(pairs, target, recipe="response_last", layers=LAYERS)

    for row, layer in enumerate(LAYERS):
        torch.testing.assert_close(ours.value_vector[row].flatten(), theirs.layer_activations[layer], atol=1e-5, rtol=0)


def test_unrotated_keys_agree_with_steering_vectors(target):
    from steering_vectors import record_activations

    text = render(make_pairs(3)[0], target, recipe="response_last")
    with (
        torch.no_grad(),
        record_activations(
            target.model, "self_attn", {"self_attn": "model.layers.{num}.self_attn.k_proj"}, layer_nums=LAYERS
        ) as theirs,
    ):
        target.model(input_ids=torch.tensor([text.positive_ids]))

    (states,) = read_states([text.positive_ids], [text.positive_positions], target, LAYERS)

    for row, layer in enumerate(LAYERS):
        torch.testing.assert_close(states.keys[row].flatten(), theirs[layer][0][0, -1], atol=1e-5, rtol=0)


def test_keys_of_the_same_text_do_not_depend_on_where_it_stands(target):
    # layer 0 sees single tokens, so its unrotated keys must be the same at every position
    text = [5] * 200

    (near,) = read_states([text], [[3]], target, [0])
    (far,) = read_states([text], [[180]], target, [0])

    torch.testing.assert_close(near.keys, far.keys, atol=1e-5, rtol=0)


def test_in_a_mixed_run_each_bad_pair_is_named_with_its_reason_and_spoils_no_other(target):
    good = make_pairs(36)
    bad = [
        make_pair(90, positive="word " * 700),
        replace(make_pair(91), negative_response="  "),
        replace(make_pair(92), positive_response="same", negative_response="same"),
        replace(make_pair(93), positive_response="I think <think> so"),
    ]
    pairs = good[:9] + bad[:2] + good[9:20] + bad[2:] + good[20:]

    vector = build_vector(pairs, target, recipe=Recipe("fewshot", max_sequence_length=2048), layers=LAYERS)

    known = vector.metadata
    assert (known["total_pairs"], known["pairs_used"], known["pairs_failed"]) == (40, 36, 4)
    reasons = {failure["pair_id"]: failure["reason"] for failure in known["failures"]}
    assert [reasons[pair.pair_id] for pair in bad] == ["too_long", "empty", "identical", "special_token"]


def test_a_style_without_a_usable_pair_fails_and_says_why(target):
    pairs = [replace(make_pair(n), positive_response="", negative_response="plain") for n in range(3)]

    with pytest.raises(StyleFailed, match="3 x empty"):
        build_vector(pairs, target, layers=LAYERS)


def test_instructions_without_answers_make_a_vector_where_no_answer_is_read(target):
    words = {"positive_prompt": "Answer in steps.", "negative_prompt": "Answer plainly.", "style": "steps"}
    pairs = [
        ContrastivePair(question=f"What is {n}?", positive_response="", negative_response="", **words) for n in range(3)
    ]

    assert build_vector(pairs, target, layers=LAYERS, recipe="system_prompt").metadata["pairs_used"] == 3


def test_a_difference_that_is_not_finite_is_rejected(tmp_path):
    broken = load_tiny_target(tmp_path)
    with torch.no_grad():
        broken.model.base_model.layers[2].self_attn.v_proj.weight.fill_(float("inf"))

    differences = extract_batch(make_pairs(2), broken, [2], Recipe("response_last"))

    assert [rejection.reason for rejection in differences.rejected] == ["not_finite", "not_finite"]


def test_both_sides_of_a_few_shot_text_end_with_the_same_question_and_are_read_at_their_last_token(target):
    pairs = make_pairs(20)
    text = render(pairs[7], target, recipe="fewshot", pairs=pairs)
    positive, negative = (target.tokenizer.decode(ids) for ids in (text.positive_ids, text.negative_ids))

    assert text.positive_positions == [len(text.positive_ids) - 1]
    assert text.negative_positions == [len(text.negative_ids) - 1]
    assert positive.split("user\n")[-1] == negative.split("user\n")[-1]
    assert pairs[7].positive_response in positive
    assert pairs[7].negative_response in negative
    assert pairs[7].question not in positive.split("user\n")[-1]
    assert positive.count("assistant\n") == Recipe().n_shots + 1


def test_a_few_shot_text_that_is_too_long_gets_fewer_examples_before_its_pair_is_lost(target):
    pairs = make_pairs(20)
    whole = render(pairs[0], target, recipe="fewshot", pairs=pairs)
    limit = len(whole.positive_ids) - 1

    text = render(pairs[0], target, recipe=Recipe("fewshot", max_sequence_length=limit), pairs=pairs)

    assert len(text.positive_ids) <= limit
    with pytest.raises(PairRejected, match="none cut off"):
        render(pairs[0], target, recipe=Recipe("fewshot", max_sequence_length=20), pairs=pairs)


def test_a_batch_with_too_few_pairs_says_how_many_examples_its_texts_had(target, caplog):
    full, small = (build_vector(make_pairs(n), target, recipe="fewshot", layers=[1]) for n in (16, 3))

    assert "examples" not in full.metadata
    assert small.metadata["examples"] == {"asked": 4, "fewest": 2, "texts_with_fewer": 3}
    assert "3 of 3 texts have fewer than 4 examples" in caplog.text


def test_pairs_with_one_id_are_refused(target):
    with pytest.raises(DatasetError, match="pair_id of its own"):
        build_vector([make_pair(1), make_pair(1, positive="Step 1: other.")], target)
