"""The rules by which a vector is judged, all of them, each with its limit (docs/evaluation.md).

A vector is good whose answers show the style, more than those of a random vector of its size, and are
fluent, on their questions, in words of their own, and as often right as before. Each rule looks at one
measure, gives the figures that it looked at, and says nothing where that measure is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.evaluation.bootstrap import bootstrap_interval, gain_interval
from factory.evaluation.figures import AnswerFigures, Capability, Check, Interval, RightAnswers

STRONG = 0.3  # gain in the share of answers in the style from which a vector "steers"
OFF_TOPIC = 0.5  # share of the unsteered answers' relevance below which steered ones are off their questions
REPETITIVE = 0.2  # gain in the share of sentences that answers have in common from which they repeat themselves


@dataclass(frozen=True)
class Gains:
    """What steering gains on paired questions: over the unsteered model, and over a random vector of equal norms.

    ``effect``: in the share of answers in the style, with its ``interval``; ``markers``: the interval of
    the gain in markers per answer; ``over_random`` and ``markers_over_random``: both over the random vector.
    """

    effect: float
    interval: Interval
    markers: Interval
    over_random: Interval
    markers_over_random: Interval

    @property
    def in_style(self) -> bool:
        """Whether more answers are in the style, beyond chance and beyond a random vector."""
        return self.interval[0] > 0 and self.over_random[0] > 0

    @property
    def in_markers(self) -> bool:
        """Whether answers have more markers, beyond chance and beyond a random vector."""
        return self.markers[0] > 0 and self.markers_over_random[0] > 0


def check_style(gains: Gains) -> Check:
    """Answers take the style: surely more than unsteered, surely more than with a random vector, and by :data:`STRONG`.

    "Surely": the whole 95 % interval of the paired gain is above 0.
    """
    said = (
        f"gain of {gains.effect:+.0%} ({_spread(gains.interval)}) in answers in the style, over a random vector "
        f"{_spread(gains.over_random)}; {STRONG:.0%} or more is asked"
    )
    return Check(name="style", passed=gains.in_style and gains.effect >= STRONG, said=said)


def check_fluency(steered: AnswerFigures, max_loops: float) -> Check:
    """Answers hardly loop: in ``max_loops`` of them at most."""
    said = f"{steered.loops:.0%} of answers loop; {max_loops:.0%} or fewer may"
    return Check(name="fluent", passed=steered.loops <= max_loops, said=said)


def check_relevance(steered: AnswerFigures, unsteered: AnswerFigures) -> Check:
    """Answers stay on their questions: their relevance is not surely below :data:`OFF_TOPIC` of the unsteered ones'.

    A steered answer that is empty counts as saying nothing about its question.
    """
    pairs = [
        (after or 0.0, before)
        for after, before in zip(steered.relevances, unsteered.relevances, strict=False)
        if before is not None
    ]
    if len(pairs) < 2:
        return Check(name="on topic", passed=None, said="relevance was not measured")
    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    kept = bootstrap_interval([after - OFF_TOPIC * before for after, before in pairs])
    said = (
        f"an answer is {means[0]:.2f} nats per token likelier after its own question than after others, "
        f"{means[1]:.2f} unsteered; {OFF_TOPIC:.0%} of that is asked"
    )
    return Check(name="on topic", passed=kept[1] >= 0, said=said)


def check_repetition(steered: AnswerFigures, unsteered: AnswerFigures) -> Check:
    """Answers have words of their own: they share hardly more sentences with each other than unsteered ones do."""
    after, before = steered.repeated_sentences, unsteered.repeated_sentences
    if after is None or before is None:
        return Check(name="own words", passed=None, said="repetition was not measured")
    said = f"{after:.0%} of sentences stand in another answer too, {before:.0%} unsteered; {REPETITIVE:.0%} more may"
    return Check(name="own words", passed=after - before <= REPETITIVE, said=said)


def check_right_answers(capability: Capability, tasks: Sequence[RightAnswers] = ()) -> Check:
    """Right answers are kept: on no task is a loss sure, so the lower end of its 95 % interval is not above 0.

    An evaluation without ``tasks`` has its exact questions in their place.
    """
    if not tasks and (capability.won is None or capability.lost is None):
        return Check(name="right answers", passed=None, said="right answers were not compared one by one")
    exact = RightAnswers(task="exact questions", n=capability.n, won=capability.won or 0, lost=capability.lost or 0)
    held = [(task, gain_interval(task.won, task.lost, task.n)) for task in tasks or [exact]]
    said = "; ".join(
        f"of {task.n} {task.task if task is exact else 'items of ' + task.task} {task.lost} are right only unsteered, "
        f"{task.won} only steered: a gain of {_spread(interval)}"
        for task, interval in held
    )
    return Check(name="right answers", passed=all(high >= 0 for _, (_, high) in held), said=said)


# The verdict on a vector that takes the style, by the first rule that it fails. Five words at most.
FAULTS = {
    "fluent": "steers, but loops",
    "on topic": "steers, but off its questions",
    "own words": "steers, but repeats itself",
    "right answers": "steers, but loses right answers",
}


def judge(gains: Gains, checks: Sequence[Check]) -> str:
    """The verdict in five words at most, from the gains and every check."""
    if gains.in_style and gains.effect >= STRONG:
        failed = [check.name for check in checks if check.passed is False]
        return next((said for name, said in FAULTS.items() if name in failed), "steers")
    return "steers weakly" if gains.in_style or gains.in_markers else "no effect"


def reason_of(checks: Sequence[Check]) -> str:
    """Why the verdict is what it is: what the failed checks say, or else what the first says."""
    failed = [check.said for check in checks if check.passed is False]
    return "; ".join(failed or [check.said for check in checks[:1]])


def _spread(interval: Interval) -> str:
    return f"{interval[0]:+.0%} to {interval[1]:+.0%}"
