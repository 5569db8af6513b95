"""A steered block: whatever generates inside it is steered as generate_batch steers."""

import pytest
import torch

from factory.errors import VectorError
from factory.vector.steer import Steering, as_messages, generate_batch, left_padded
from factory.vector.vector import SteeringVector

QUESTIONS = ["Why do leaves turn red?", "How does a lock on a canal lift a ship up a hill?"]


@pytest.fixture
def steering(target):
    shape = (target.n_layers, *target.shape)
    noise = torch.Generator().manual_seed(4)
    keys, values = (torch.randn(shape, generator=noise) for _ in range(2))
    vector = SteeringVector("any", keys, values, list(range(target.n_layers)), target.name)
    return Steering(vector, strength=6.0, key_strength=2.0, n_positions=2)


def prompt(target, questions):
    return left_padded(target, [[*target.prompt_ids(as_messages(q)), target.neutral_id] for q in questions])


def said(target, ids, output):
    return [text.strip() for text in target.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)]


def by_generate(target, questions):
    ids, mask = prompt(target, questions)
    output = target.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    return said(target, ids, output)


def test_generate_of_transformers_inside_the_block_gives_the_answers_of_generate_batch(target, steering):
    asked = [as_messages(question) for question in QUESTIONS]
    with steering.applied(target):
        inside = by_generate(target, QUESTIONS)
    assert inside == generate_batch(target, asked, steering=steering, max_new_tokens=12)
    assert inside != by_generate(target, QUESTIONS) == generate_batch(target, asked, max_new_tokens=12)


@torch.inference_mode()
def test_a_loop_of_ones_own_is_steered_in_its_prefill_alone(target, steering):
    ids, mask = prompt(target, QUESTIONS[:1])
    with steering.applied(target):
        step, tokens = target.model(ids, attention_mask=mask, use_cache=True), ids
        assert step.logits.shape[1] == ids.shape[1]
        for _ in range(12):
            tokens = torch.cat([tokens, step.logits[:, -1:].argmax(dim=-1)], dim=1)
            step = target.model(tokens[:, -1:], past_key_values=step.past_key_values, use_cache=True)
    asked = [as_messages(QUESTIONS[0])]
    output = target.tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
    assert output[0].strip() == generate_batch(target, asked, steering=steering, max_new_tokens=12)[0]


def test_the_model_is_as_before_when_the_block_ends_by_an_error(target, steering):
    before = by_generate(target, QUESTIONS)
    with pytest.raises(ZeroDivisionError), steering.applied(target):
        raise ZeroDivisionError
    assert by_generate(target, QUESTIONS) == before


def test_a_pass_without_a_cache_cannot_be_steered_and_says_so(target, steering):
    ids, _ = prompt(target, QUESTIONS[:1])
    with steering.applied(target), pytest.raises(VectorError, match="use_cache=True"):
        target.model(ids, use_cache=False)
