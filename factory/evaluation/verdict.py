"""The verdict: which cell of the sweep is chosen, and what the measured parts say about the vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from factory.evaluation.evaluation import KEY, Evaluation
from factory.evaluation.figures import AnswerFigures, Interval, Scope
from factory.evaluation.parts import PartsDone, Tried
from factory.evaluation.score import gain
from factory.evaluation.spec import BASELINES, CONTROLS, EvaluationSpec
from factory.pairs.styles import Style
from factory.vector.recommendation import Recommendation, without_recommendation
from factory.vector.vector import SteeringVector

STATES = (*BASELINES, "steered", *CONTROLS)  # of the model, in the order in which they are shown
STRONG = 0.3  # gain in the share of answers in the style from which a vector "steers"

STRONGER = "Try higher strengths, more layers (target_layers: all), or more steered positions."
WEAKER = "Its answers loop too often: evaluate lower strengths or fewer positions."

NOTHING = (
    "Extract more layers (target_layers: all), try another recipe (fewshot or response_mean with n_tokens: 4), "
    "add pairs, ask more held-out questions (evaluation.limit), or widen evaluation.strengths."
)
NOT_MEASURED = "not measured"
NO_MARKERS = "The style has no markers, so that no answer can be told to be in it: add 'markers' to its file."


def choose_cell(cells: Sequence[Tried], spec: EvaluationSpec) -> Tried:
    """The cell with most answers in the style among those that hardly loop.

    Of equals the one that loops least, then the one with most markers, then the most fluent.
    Where all of them loop, the one that loops least.
    """
    fluent = [cell for cell in cells if cell.figures.loops <= spec.max_loops]

    def worth(cell: Tried) -> tuple[float, ...]:
        figures = cell.figures
        return figures.share, -figures.loops, figures.markers, figures.distinct_4grams

    return max(fluent, key=worth) if fluent else min(cells, key=lambda cell: cell.figures.loops)


def conclude(style: Style, spec: EvaluationSpec, done: PartsDone, specificity: dict[str, float]) -> Evaluation:
    """The verdict, from all parts. ``specificity``: share of answers by style's markers.

    Raises:
        ValueError: a part is missing.
    """
    states = done.states
    steered, unsteered, random = (states[name].figures for name in ("steered", "unsteered", "random"))
    if done.capability is None:
        raise ValueError("a verdict needs every part, and capability is missing")
    effect, interval = gain(steered.in_style, unsteered.in_style)
    marker_gain, marker_interval = gain(steered.shown, unsteered.shown)
    if style.markers:
        gains = Gains(effect, interval, marker_interval, *_above_random(spec, steered, random))
        verdict, advice = verdict_of(gains, steered.loops, spec.max_loops)
    else:
        verdict, advice = NOT_MEASURED, NO_MARKERS
    chosen = choose_cell(done.cells, spec)
    return Evaluation(
        style=style.name,
        setting=chosen.setting,
        layers=chosen.layers,
        effect=effect,
        interval=interval,
        marker_gain=marker_gain,
        marker_interval=marker_interval,
        verdict=verdict,
        advice=_advise(advice, verdict, states["prompted"].figures.share),
        measured={name: states[name].figures.summary() for name in STATES},
        cells=tuple(cell.summary() for cell in done.cells),
        gate=done.cells[0].gate,
        capability=done.capability,
        specificity=specificity,
        settings=Scope(
            questions=len(spec.questions),
            choice_questions=len(spec.choice_questions),
            max_new_tokens=spec.max_new_tokens,
            max_loops=spec.max_loops,
        ),
        judged={name: scores for name in STATES if (scores := states[name].judged)},
    )


def _advise(advice: str, verdict: str, prompted: float) -> str:
    """The advice, and whether the model shows the style at all when it is asked for it in words."""
    if verdict == "no effect" and prompted < STRONG:
        return f"{advice} Even asked for it in words, this model shows the style in {prompted:.0%} of answers."
    return advice


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


def _above_random(spec: EvaluationSpec, steered: AnswerFigures, random: AnswerFigures) -> tuple[Interval, Interval]:
    """Intervals of the gain over the random vector in answers in the style and in markers, on shared questions."""
    asked = spec.questions_of("steered")
    rows = [asked.index(question) for question in spec.questions_of("random")]
    shares = gain([steered.in_style[row] for row in rows], random.in_style)[1]
    markers = gain([steered.shown[row] for row in rows], random.shown)[1]
    return shares, markers


def verdict_of(gains: Gains, loops: float, max_loops: float) -> tuple[str, str]:
    """A verdict in plain words, and what to try next where it is not the best.

    A vector must do more than the unsteered model does, and more than a random vector of its size.
    """
    broken = loops > max_loops
    in_style = gains.interval[0] > 0 and gains.over_random[0] > 0
    in_markers = gains.markers[0] > 0 and gains.markers_over_random[0] > 0
    if in_style and gains.effect >= STRONG:
        return ("steers, but loops", WEAKER) if broken else ("steers", "")
    if in_style or in_markers:
        return (
            "steers weakly",
            f"{WEAKER if broken else STRONGER} The recipe response_mean with n_tokens: 4 may do more.",
        )
    if gains.interval[0] > 0 or gains.markers[0] > 0:
        return "no effect", f"A random vector of the same size does as much, within what chance allows. {NOTHING}"
    return "no effect", f"Nothing that the sweep tried shows the style. {NOTHING}"


def add_evaluation(vector: SteeringVector, evaluation: Evaluation) -> SteeringVector:
    """The vector with its verdict, and with what steering then uses by default; nothing where none was measured."""
    cell, measured = evaluation.setting, evaluation.verdict != NOT_MEASURED
    best = Recommendation(
        strength=cell.strength,
        layers=evaluation.layers,
        positions=cell.n_positions,
        key_strength=cell.key_strength,
    )
    found = {
        "effect": evaluation.effect if measured else None,
        "interval": list(evaluation.interval) if measured else None,
        "verdict": evaluation.verdict,
        KEY: evaluation.to_json(),
    }
    before = {key: value for key, value in vector.metadata.items() if key not in found}
    recommended = best.written_into(before) if measured else without_recommendation(before)
    return replace(vector, metadata={**recommended, **found})


def specificity_of(answers: list[str], styles: Mapping[str, Style]) -> dict[str, float]:
    """Share of ``answers`` in each of ``styles``, judged by that style's markers."""
    return {name: round(sum(map(style.is_shown_in, answers)) / len(answers), 4) for name, style in styles.items()}
