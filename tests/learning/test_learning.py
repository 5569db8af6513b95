"""Learned vectors: gradients as autograd would give them, steps that are pure, and a direction that is found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.learning import held_mib
from factory import Steering, SteeringVector, build_vector
from factory.errors import StyleFailed
from factory.learning.learn import learn_vector, learnable_pairs, read_part, zero_vector
from factory.learning.objectives import OBJECTIVES, loop_unlikelihood, preference
from factory.learning.prompts import Prompts
from factory.learning.reading import ResponseReader
from factory.learning.schedule import Part, Schedule, count_passes
from factory.learning.sentences import loop_of
from factory.learning.spec import Learning
from factory.learning.state import PartSum, State, start_tensor, take_step
from factory.vector.steer import add_vector, generate_batch

LAYERS = [1, 2, 3]
QUICK = Learning(rounds=4, pairs_per_round=4, pairs_per_part=2, response_tokens=12, validate_every=2)


@pytest.fixture(scope="module")
def pairs(starter_pairs):
    return starter_pairs[:10]


@pytest.fixture(scope="module")
def start(pairs, target):
    return build_vector(pairs, target, layers=LAYERS)


def naive_loss(target, pair, vector, n_tokens):
    """One pair: the prompt read by the model, the vector added by hand, the response read token by token behind it."""
    prompt = target.prompt_ids([{"role": "user", "content": pair.question}])
    said = target.text_ids(pair.positive_response.strip())[:n_tokens]  # the first sentence alone is longer
    cache = target.model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values
    added = SteeringVector("naive", vector[0], vector[1], LAYERS, target.name)
    for layer in LAYERS:  # what add_vector writes into must not be what the model's own gradient needs
        cache.layers[layer].keys, cache.layers[layer].values = (
            part.clone() for part in (cache.layers[layer].keys, cache.layers[layer].values)
        )
    add_vector(target, cache, torch.arange(len(prompt))[None], Steering(added, 1.0, 1.0))
    loss, token = 0.0, target.neutral_id
    for answer in said:
        logits = target.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
        loss, token = loss - logits.log_softmax(0)[answer], answer
    return loss / len(said)


def test_the_gradient_of_a_part_is_that_of_naive_autograd_pair_by_pair(pairs, target, start):
    part = Part(tuple(pairs[:3]), validates=False)
    vector = start_tensor(start, Learning())
    reader = ResponseReader(Prompts(target), LAYERS, n_tokens=9)
    found = read_part(part, vector, reader, Learning(loop_penalty=0))

    naive = vector.clone().requires_grad_()
    loss = sum(naive_loss(target, pair, naive, 9) for pair in part.pairs)
    (gradient,) = torch.autograd.grad(loss, naive)

    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(found.gradient, gradient, atol=1e-6, rtol=1e-3)
    assert gradient.norm() > 1e-3
    assert all(weight.grad is None for weight in target.model.parameters())


def test_checkpointing_gives_the_same_gradient_and_keeps_less(pairs, target, start):
    part, vector = Part(tuple(pairs[:3]), validates=False), start_tensor(start, Learning())
    plain, tight = (ResponseReader(Prompts(target), LAYERS, n_tokens=9, memory=bytes_) for bytes_ in (2**40, 0))
    usual, again = (read_part(part, vector, reader, Learning()) for reader in (plain, tight))
    assert torch.allclose(again.gradient, usual.gradient, rtol=0, atol=1e-6)
    assert again.loss == usual.loss
    held = [
        held_mib(target, lambda reader=reader: read_part(part, vector, reader, Learning())) for reader in (plain, tight)
    ]
    assert held[1] < held[0] / 2
    usual = type(target.model.base_model.layers[0]).forward
    assert target.model.base_model.layers[0].forward.__func__ is usual  # the model is as it was


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_falls_when_a_step_follows_its_gradient(objective, pairs, target, start):
    learning = Learning(objective=objective)
    reader = ResponseReader(Prompts(target), LAYERS, n_tokens=9)
    part, vector = Part(tuple(pairs[:2]), validates=False), start_tensor(start, learning)
    before = read_part(part, vector, reader, learning)
    after = read_part(part, vector - 0.01 * before.gradient / before.gradient.norm(), reader, learning)
    assert after.loss < before.loss


def test_a_preference_weighs_the_positive_side_by_what_the_model_prefers_the_plain_one(pairs, target, start):
    n_tokens, vector, weights = 400, start_tensor(start, Learning()), []
    reader = ResponseReader(Prompts(target), LAYERS, n_tokens)
    swapped = replace(
        pairs[0], positive_response=pairs[0].negative_response, negative_response=pairs[0].positive_response
    )
    for pair in (*pairs[:2], swapped):
        sides = [pair.positive_response], [pair.negative_response]
        unsteered = [float(reader.likelihoods([pair.question], side, None)) for side in sides]
        wanted, plain = (float(reader.likelihoods([pair.question], side, vector)) for side in sides)
        weights.append(max(1.0, n_tokens * (unsteered[1] - unsteered[0])))
        naive = math.log(1 + math.exp(plain - weights[-1] * wanted))
        assert float(preference(reader, [pair], vector, Learning())) == pytest.approx(naive, rel=1e-4)
    assert max(weights) > 5 > min(weights)


def test_the_unlikelihood_of_a_loop_is_that_of_its_repeated_words_told_one_by_one(pairs, target, start):
    vector = start_tensor(start, Learning())
    reader = ResponseReader(Prompts(target), LAYERS, n_tokens=400)
    loop = loop_of(pairs[0].positive_response)
    before, again = target.text_ids(loop.before), target.text_ids(loop.again)
    said, tokens, _ = reader.log_probabilities([pairs[0].question], [before + again], vector)
    each = [float(said[0, at, tokens[0, at]].exp()) for at in range(len(before), len(before) + len(again))]
    naive = sum(-math.log(1 - probability) for probability in each) / len(again)
    assert float(loop_unlikelihood(reader, pairs[:1], vector)) == pytest.approx(naive, rel=1e-4)
    alone = sum(float(loop_unlikelihood(reader, [pair], vector)) for pair in pairs[:3])
    assert float(loop_unlikelihood(reader, pairs[:3], vector)) == pytest.approx(alone, rel=1e-4)


def test_pairs_without_a_sentence_to_repeat_have_no_loop_to_unlearn(pairs, target, start):
    short = [replace(pairs[0], positive_response="Yes. No.")]
    reader, vector = ResponseReader(Prompts(target), LAYERS, n_tokens=9), start_tensor(start, Learning())
    assert float(loop_unlikelihood(reader, short, vector)) == 0
    assert read_part(Part(tuple(short), validates=False), vector, reader, Learning()).gradient.isfinite().all()


def test_a_long_response_ends_with_its_last_whole_sentence(target):
    text = "First this. Then that is said. And at last something much longer follows, which does not fit."
    whole = ResponseReader(Prompts(target), LAYERS, n_tokens=400)
    end = target.tokenizer.eos_token_id
    assert whole.response_ids(text) == [*target.text_ids(text), end]
    fits = len(target.text_ids("First this. Then that is said."))
    cut = ResponseReader(Prompts(target), LAYERS, n_tokens=fits + 1)
    assert cut.response_ids(text) == [*target.text_ids("First this. Then that is said."), end]
    assert ResponseReader(Prompts(target), LAYERS, n_tokens=2).response_ids(text) == target.text_ids("First this.")[:2]


def test_a_planted_direction_is_found_again(pairs, target):
    # Given answers that the tiny model gives with a strong vector of which learning is not told
    torch.manual_seed(0)
    planted = replace(zero_vector(target, "planted", LAYERS), value_vector=3 * torch.randn(3, *target.shape))
    asked = [[{"role": "user", "content": pair.question}] for pair in pairs]
    said = generate_batch(target, asked, steering=Steering(planted), max_new_tokens=12)
    told = [replace(pair, positive_response=text) for pair, text in zip(pairs, said, strict=True) if text]

    learning = Learning(rounds=40, rate=0.1, response_tokens=10, validation_share=0, loop_penalty=0)
    found = learn_vector(told, target, layers=LAYERS, learning=learning)

    # Then what was learned explains the answers as well as what made them, in its direction
    reader, whole = ResponseReader(Prompts(target), LAYERS, n_tokens=10), Part(tuple(told), validates=True)
    nothing, theirs, ours = (
        read_part(whole, torch.stack([vector.key_vector, vector.value_vector]), reader, learning).loss
        for vector in (zero_vector(target, "none", LAYERS), planted, found)
    )
    assert ours < theirs < nothing
    assert found.cosine(planted) > 0.2  # of 96 numbers: a random direction has 0.1 or less, most often


def test_learning_starts_from_the_mean_and_says_all_that_decided_it(pairs, target, start):
    learned = learn_vector(pairs, target, start=start, learning=QUICK)
    config = learned.extraction_config["learning"]
    curve = learned.metadata["learning"]["curve"]
    assert Learning(**{name: value for name, value in config.items() if name != "start_sha256"}) == QUICK
    assert len(config["start_sha256"]) == 64
    assert [entry["round"] for entry in curve] == [0, 1, 2, 3, 4]
    assert [entry["validation"] is not None for entry in curve] == [True, False, True, False, True]
    assert Steering.recommended(learned) == Steering(learned, 1.0, 1.0, 1)
    assert learned.to_pt() == learn_vector(pairs, target, start=start, learning=QUICK).to_pt()
    assert SteeringVector.from_bytes(learned.to_pt(), "learned.pt") == learned


def test_what_an_evaluation_said_of_the_start_is_not_said_of_what_is_learned(pairs, target, start):
    evaluated = replace(start, metadata={**start.metadata, "verdict": "steers", "effect": 0.6, "interval": [0.5, 0.7]})
    learned = learn_vector(pairs, target, start=evaluated, learning=Learning(rounds=1, response_tokens=4))
    assert not {"verdict", "effect", "interval"} & set(learned.metadata)
    assert learned.metadata["model_revision"] == start.metadata["model_revision"]


def test_no_round_gives_the_mean_itself(pairs, target, start):
    assert learn_vector(pairs, target, start=start, learning=Learning(rounds=0)).to_pt() == start.to_pt()


def test_a_prompt_is_read_once_and_the_oldest_make_room(pairs, target):
    prompts = Prompts(target)
    once = prompts.read(pairs[0].question)
    assert prompts.read(pairs[0].question) is once
    tight = Prompts(target, memory=once.nbytes)
    first = tight.read(pairs[0].question)
    tight.read(pairs[1].question)
    again = tight.read(pairs[0].question)
    assert again is not first
    assert torch.equal(again, first)


# ---- the step, without a model


def gradient_of(value):
    return PartSum(1.0, 2, torch.full((2, 1, 1, 2), value))


def test_steps_are_those_of_torchs_adam_with_a_rate_that_falls_linearly():
    learning = Learning(rate=0.05, rounds=8)
    torch.manual_seed(0)
    state = State.start(torch.randn(2, 1, 1, 2))
    theirs = state.vector.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.05)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda number: 1 - number / 8)
    for _ in range(8):
        gradient = torch.randn(2, 1, 1, 2)
        state = take_step(state, [PartSum(1.0, 1, gradient)], learning)
        theirs.grad = gradient.clone()
        adam.step()
        falling.step()
    assert torch.allclose(state.vector, theirs.detach(), atol=1e-6)


def test_a_state_that_went_through_its_bytes_takes_the_same_step():
    learning = Learning()
    state = take_step(State.start(torch.ones(2, 1, 1, 2)), [gradient_of(0.5), PartSum(3.0, 1)], learning)
    again = State.from_bytes(state.to_bytes())
    assert again.to_bytes() == state.to_bytes()
    step = [gradient_of(-0.25)]
    assert take_step(again, step, learning).to_bytes() == take_step(state, step, learning).to_bytes()


def test_learning_stops_where_the_validation_gains_no_more_and_keeps_the_best():
    learning = Learning(patience=2)
    state, seen = State.start(torch.zeros(2, 1, 1, 2)), []
    for validation in (3.0, 2.0, 2.5, 2.2, 1.0):
        if state.is_done(learning):
            break
        seen.append(state.vector)
        state = take_step(state, [gradient_of(1.0), PartSum(validation, 1)], learning)
    assert len(seen) == 4  # 1.0 came too late
    assert state.best_round == 1
    assert torch.equal(state.best, seen[1])


def test_without_pairs_that_validate_the_last_vector_is_the_best():
    learning = Learning(rounds=2)
    state = State.start(torch.zeros(2, 1, 1, 2))
    for parts in ([gradient_of(1.0)], [gradient_of(1.0)], []):
        state = take_step(state, parts, learning)
    assert state.is_done(learning)
    assert torch.equal(state.best, state.vector)


def test_a_gradient_that_is_not_finite_fails_and_says_what_to_do():
    with pytest.raises(StyleFailed, match="round 0 is not finite"):
        take_step(State.start(torch.zeros(2, 1, 1, 2)), [gradient_of(float("nan"))], Learning())


# ---- who is read when


def test_all_pairs_have_their_turn_and_none_that_validates_teaches(starter_pairs):
    learning = Learning(rounds=10, pairs_per_round=8)
    schedule = Schedule.of(starter_pairs, learning)
    read = [pair.pair_id for n in range(5) for part in schedule.parts(n) if not part.validates for pair in part.pairs]
    assert len(schedule.validating) == 8
    assert len(set(read)) == 40 == len(read)
    assert not {pair.pair_id for pair in schedule.validating} & set(read)
    assert Schedule.of(starter_pairs[::-1], learning) == schedule


@pytest.mark.parametrize("rounds", [0, 5, 6, 7])
@pytest.mark.parametrize("n_pairs", [3, 6, 20, 48])
def test_the_passes_that_are_counted_are_those_of_the_schedule(rounds, n_pairs, starter_pairs):
    learning = Learning(rounds=rounds, validation_limit=5)
    schedule = Schedule.of(starter_pairs[:n_pairs], learning)
    parts = [part for number in range(rounds + 1) for part in schedule.parts(number)]
    counted = [sum(len(part.pairs) for part in parts if part.validates is validates) for validates in (False, True)]
    assert count_passes(n_pairs, learning) == tuple(counted)


def test_a_round_with_more_parts_than_places_is_refused():
    with pytest.raises(ValueError, match="1000 parts"):
        Learning(pairs_per_round=4000)


def test_pairs_that_repeat_others_or_cannot_be_read_teach_nothing(pairs, target):
    broken = replace(pairs[0], positive_response="<|im_end|> hello")
    repeated = replace(pairs[1], extra={"repeats": pairs[2].pair_id})
    assert learnable_pairs([broken, repeated, pairs[2]], target) == [pairs[2]]
