"""The verdict's rules: each catches the bad vector that it is meant for, and none a good one."""

import re

import pytest

from factory.evaluation import rules
from factory.evaluation.cell import Cell
from factory.evaluation.figures import Capability, RightAnswers
from factory.evaluation.parts import Answered, PartsDone, Tried
from factory.evaluation.score import score
from factory.evaluation.surprise import Surprise
from factory.evaluation.verdict import ADVICE, conclude
from factory.pairs.styles import Style
from tests.conftest import ROOT
from tests.evaluation.test_evaluation import SPEC

N = 30
STYLE = Style(
    name="pirate",
    description="d",
    positive_prompt="{question}",
    negative_prompt="{question}",
    markers=("arr",),
    min_markers=1,
)
THINGS = [f"{first}{second}" for first in ("tide", "moon", "wind", "salt", "rope", "mast") for second in "abcde"]
PLAIN = [f"The {thing} is a matter of {thing} and nothing else here." for thing in THINGS]
STYLED = [f"Arr, the {thing} it is: {thing} all the way down." for thing in THINGS]
FORGETS = Capability(n=12, unsteered=0.5, steered=0.0, won=0, lost=6)
HARMLESS = RightAnswers(task="sums", n=50, won=3, lost=5)
KEPT = Capability(n=12, unsteered=0.5, steered=0.5, won=1, lost=1)
ON_TOPIC, OFF_TOPIC = [Surprise(1.0, 2.0)] * 8, [Surprise(1.0, 1.05)] * 8


def answered(texts, read=()):
    return Answered(figures=score(texts, STYLE, read), answers="answers/0.json")


def judged(steered, *, read=ON_TOPIC, random=PLAIN, capability=KEPT, tasks=()):
    """The evaluation of a vector under which the model says ``steered``, read so; ``random`` under a random one."""
    states = {"unsteered": answered(PLAIN, ON_TOPIC), "prompted": answered(STYLED, ON_TOPIC)}
    states |= {"steered": answered(steered, read), "random": answered(random[::2]), "negated": answered(PLAIN[::2])}
    figures = states["steered"].figures
    cell = Tried(setting=Cell(5.0), layers=(0,), figures=figures, answers="a", openings=0.0, moved=0.0)
    spec = SPEC.model_copy(update={"questions": tuple(f"What of {thing}?" for thing in THINGS), "max_loops": 0.1})
    return conclude(STYLE, spec, PartsDone(states, (cell,), capability), {}, tasks)


def test_a_good_vector_passes_every_rule():
    found = judged(STYLED)
    assert found.verdict == "steers"
    assert all(check.passed for check in found.checks)
    assert found.advice == ""
    assert "gain of +100%" in found.reason


BAD = {
    "a random vector that is added strongly": ({"steered": STYLED, "random": STYLED}, "style", "no effect"),
    "shuffled pairs": ({"steered": PLAIN}, "style", "no effect"),
    "loops": ({"steered": ["arr go on " * 20] * N}, "fluent", "steers, but loops"),
    "a constant sentence": (
        {"steered": [f"Arr, that is the question of the day. {text}" for text in PLAIN]},
        "own words",
        "steers, but repeats itself",
    ),
    "answers about nothing": ({"steered": STYLED, "read": OFF_TOPIC}, "on topic", "steers, but off its questions"),
    "empty answers": (
        {"steered": [*STYLED[8:], *STYLED[:8]], "read": [None] * 8},
        "on topic",
        "steers, but off its questions",
    ),
    "a model that forgets": (
        {"steered": STYLED, "capability": FORGETS},
        "right answers",
        "steers, but loses right answers",
    ),
    "a model that forgets one task of two": (
        {"steered": STYLED, "tasks": (HARMLESS, RightAnswers(task="arc", n=50, won=1, lost=11))},
        "right answers",
        "steers, but loses right answers",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_vector_is_caught_by_the_rule_that_is_meant_for_it(kind):
    made, rule, verdict = BAD[kind]
    found = judged(**made)
    failed = [check.name for check in found.checks if check.passed is False]
    assert rule in failed
    assert found.verdict == verdict
    assert next(check.said for check in found.checks if check.name == rule) in found.reason
    assert found.advice


def test_what_was_not_measured_fails_nobody_and_says_so():
    found = judged(STYLED, read=(), capability=Capability(n=12, unsteered=0.5, steered=0.0))
    assert found.verdict == "steers"
    unknown = {check.name: check.said for check in found.checks if check.passed is None}
    assert set(unknown) == {"on topic", "right answers"}
    assert all("not" in said for said in unknown.values())


def test_tasks_take_the_place_of_the_twelve_exact_questions():
    found = judged(STYLED, capability=FORGETS, tasks=(HARMLESS,))
    assert found.verdict == "steers"
    (check,) = (check for check in found.checks if check.name == "right answers")
    assert check.said.startswith("of 50 items of sums 5 are right only unsteered, 3 only steered: a gain of ")
    assert found.right_answers == (HARMLESS,)


@pytest.mark.parametrize("lost", range(9))
def test_a_loss_on_a_task_is_sure_where_wilson_s_interval_of_the_items_that_differ_lies_below_one_half(lost):
    won, z = 1, 1.959963984540054
    n, share = won + lost, won / (won + lost)
    upper = (share + z * z / (2 * n) + z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    check = rules.check_right_answers(KEPT, [RightAnswers(task="sums", n=100, won=won, lost=lost)])
    assert check.passed == (upper >= 0.5)


@pytest.mark.parametrize("lost", range(7))
def test_a_loss_of_right_answers_counts_only_where_it_is_sure(lost):
    check = rules.check_right_answers(Capability(n=12, unsteered=0.5, steered=0.5, won=0, lost=lost))
    assert check.passed == (lost < 4)  # Wilson's interval of 0 of 4 ends below one half


def test_a_verdict_has_five_words_at_most_and_advice():
    for verdict in (*rules.FAULTS.values(), "steers", "steers weakly", "no effect", "not measured"):
        assert len(verdict.split()) <= 5
    assert set(ADVICE) == {"steers", *rules.FAULTS.values()}


def test_the_document_has_every_rule_with_its_limit_and_verdict():
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name, verdict in rules.FAULTS.items():
        assert re.search(rf"\| {name} \|.*`{verdict}`", text)
    for limit in (rules.STRONG, rules.OFF_TOPIC, rules.REPETITIVE):
        assert f"{limit:.0%}".replace("%", " %") in text
