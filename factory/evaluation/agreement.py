"""Agreement of the judge with the style's markers: whether what the markers count is what a reader sees."""

from __future__ import annotations

from collections.abc import Iterable

from factory.evaluation.evaluation import Evaluation
from factory.evaluation.figures import Agreement
from factory.evaluation.parts import Answered
from factory.teacher.judge import IN_STYLE


def agreement_of(states: Iterable[Answered]) -> Agreement | None:
    """The agreement on all answers of ``states`` that a judge scored; None where there are none.

    For the judge an answer is in the style whose score is :data:`IN_STYLE` or more.
    """
    seen = [
        (score >= IN_STYLE, bool(marked))
        for state in states
        if state.judged
        for score, marked in zip(state.judged.styles, state.figures.in_style, strict=False)
        if score is not None
    ]
    if not seen:
        return None
    both, judge_only, markers_only = (seen.count(kind) for kind in ((True, True), (True, False), (False, True)))
    neither = len(seen) - both - judge_only - markers_only
    return Agreement(
        n=len(seen),
        both=both,
        judge_only=judge_only,
        markers_only=markers_only,
        neither=neither,
        kappa=cohens_kappa(both, judge_only, markers_only, neither),
    )


def cohens_kappa(both: int, first_only: int, second_only: int, neither: int) -> float | None:
    """Cohen's kappa (1960) of two who say yes or no: agreement beyond chance, as a share of what could be beyond it.

    None where chance alone gives full agreement.
    """
    n = both + first_only + second_only + neither
    expected = (both + first_only) * (both + second_only) + (neither + first_only) * (neither + second_only)
    return None if expected == n * n else round((n * (both + neither) - expected) / (n * n - expected), 4)


def describe_judging(evaluation: Evaluation) -> list[str]:
    """What a judge prefers, and how far it agrees with the markers, a sentence each; nothing without a judge."""
    said = []
    chosen, agreed = evaluation.preferred, evaluation.agreement
    if chosen and chosen.n and chosen.interval:
        low, high = chosen.interval
        said.append(
            f"Shown both answers to {chosen.n} questions in both orders, the judge prefers the steered one on "
            f"{chosen.won} and the prompted one on {chosen.lost} ({low:+.0%} to {high:+.0%}); tied "
            f"{chosen.tied}, preferred for its place {chosen.split}, unreadable {chosen.unreadable}."
        )
    if agreed:
        kappa = "cannot be told, as both say the same of all" if agreed.kappa is None else f"is {agreed.kappa:.2f}"
        said.append(
            f"Cohen's kappa of judge and markers {kappa}: of {agreed.n} answers both find {agreed.both} "
            f"in the style, the judge alone {agreed.judge_only}, markers alone {agreed.markers_only}, "
            f"neither {agreed.neither}."
        )
    return said
