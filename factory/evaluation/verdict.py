"""The verdict: which cell of the sweep is chosen, and what the measured parts say about the vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from factory.evaluation.agreement import agreement_of
from factory.evaluation.cell import Cell
from factory.evaluation.certificate import CERTIFICATE, Certificate
from factory.evaluation.evaluation import KEY, TASKS, Evaluation
from factory.evaluation.figures import AnswerFigures, Check, Interval, Reading, RightAnswers, Scope, StateFigures
from factory.evaluation.parts import PartsDone, Tried
from factory.evaluation.rules import (
    STRONG,
    Gains,
    check_fluency,
    check_relevance,
    check_repetition,
    check_right_answers,
    check_style,
    judge,
    reason_of,
)
from factory.evaluation.score import gain
from factory.evaluation.spec import BASELINES, CONTROLS, MEAN, EvaluationSpec
from factory.evaluation.thought import answers_of
from factory.pairs.styles import Style
from factory.vector.learned import is_learned
from factory.vector.recommendation import AS_LEARNED, Recommendation, without_recommendation
from factory.vector.vector import SteeringVector

STATES = (*BASELINES, "steered", *CONTROLS)  # of the model, in the order in which they are shown
STRONGER = "Try higher strengths, more layers (target_layers: all), or more rounds of learning."
WEAKER = "Its answers loop too often: evaluate lower strengths, or learn for more rounds or with a higher loop_penalty."

NOTHING = (
    "Extract more layers (target_layers: all), try another recipe (fewshot or response_mean with n_tokens: 4), "
    "add pairs, ask more held-out questions (evaluation.limit), or widen evaluation.strengths."
)
ADVICE = {
    "steers": "",
    "steers, but loops": WEAKER,
    "steers, but off its questions": "Evaluate lower strengths or fewer layers: what is added drowns the question.",
    "steers, but repeats itself": "Add pairs whose answers differ more, or evaluate lower strengths.",
    "steers, but loses right answers": "Evaluate lower strengths or fewer layers, or use it where style matters most.",
}
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


def conclude(
    style: Style,
    spec: EvaluationSpec,
    done: PartsDone,
    specificity: dict[str, float],
    right_answers: Sequence[RightAnswers] = (),
) -> Evaluation:
    """The verdict, from all parts. ``specificity``: share of answers by style's markers.

    ``right_answers``: of each task that was put to the model; none where the evaluation has no tasks.

    Raises:
        ValueError: a part is missing.
    """
    states = done.states
    steered, unsteered, random = (states[name].figures for name in ("steered", "unsteered", "random"))
    if done.capability is None:
        raise ValueError("a verdict needs every part, and capability is missing")
    effect, interval = gain(steered.in_style, unsteered.in_style)
    marker_gain, marker_interval = gain(steered.shown, unsteered.shown)
    gains = Gains(effect, interval, marker_interval, *_above_random(spec, steered, random))
    checks = (
        check_style(gains) if style.markers else Check(name="style", passed=None, said=NO_MARKERS),
        check_fluency(steered, spec.max_loops),
        check_relevance(steered, unsteered),
        check_repetition(steered, unsteered),
        check_right_answers(done.capability, right_answers),
    )
    verdict = judge(gains, checks) if style.markers else NOT_MEASURED
    advice = advise(verdict, gains, loops=not checks[1].passed, prompted=states["prompted"].figures.share)
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
        reason=reason_of(checks) if style.markers else NO_MARKERS,
        advice=advice if style.markers else NO_MARKERS,
        checks=checks,
        dose=dose_of(done.cells[0].gate, chosen.setting),
        moved=chosen.moved,
        measured=_in_order(done),
        mean_setting=done.mean.setting if done.mean else None,
        cells=tuple(cell.summary() for cell in done.cells),
        gate=done.cells[0].gate,
        capability=done.capability,
        right_answers=tuple(right_answers),
        specificity=specificity,
        settings=Scope(
            questions=len(spec.questions),
            choice_questions=len(spec.choice_questions),
            max_new_tokens=spec.max_new_tokens,
            max_loops=spec.max_loops,
        ),
        judged={name: scores.summary() for name in STATES if (scores := states[name].judged)},
        preferred=states["steered"].preferred,
        agreement=agreement_of(states.values()),
    )


def _in_order(done: PartsDone) -> dict[str, StateFigures]:
    """What was measured of each state; the mean stands before what was learned from it."""
    figures = {name: done.states[name].figures.summary() for name in STATES}
    if done.mean is None:
        return figures
    figures[MEAN] = done.mean.figures.summary()
    return {name: figures[name] for name in (*BASELINES, MEAN, "steered", *CONTROLS)}


def dose_of(gate: Sequence[Reading], setting: Cell) -> float | None:
    """How much ``setting`` adds, relative to what it is added to; None where the probe did not measure it."""
    doses = next((reading.doses for reading in gate if reading.setting == setting), ())
    return round(fmean(doses), 4) if doses else None


def _above_random(spec: EvaluationSpec, steered: AnswerFigures, random: AnswerFigures) -> tuple[Interval, Interval]:
    """Intervals of the gain over the random vector in answers in the style and in markers, on shared questions."""
    asked = spec.questions_of("steered")
    rows = [asked.index(question) for question in spec.questions_of("random")]
    shares = gain([steered.in_style[row] for row in rows], random.in_style)[1]
    markers = gain([steered.shown[row] for row in rows], random.shown)[1]
    return shares, markers


def advise(verdict: str, gains: Gains, *, loops: bool, prompted: float) -> str:
    """What to try next where the verdict is not the best; ``prompted``: share of prompted answers in the style."""
    if verdict in ADVICE:
        return ADVICE[verdict]
    if verdict == "steers weakly":
        return f"{WEAKER if loops else STRONGER} The recipe response_mean with n_tokens: 4 may do more."
    gained = gains.interval[0] > 0 or gains.markers[0] > 0
    chance = "A random vector of the same size does as much, within what chance allows."
    advice = f"{chance if gained else 'Nothing that the sweep tried shows the style.'} {NOTHING}"
    if prompted < STRONG:
        return f"{advice} Even asked for it in words, this model shows the style in {prompted:.0%} of answers."
    return advice


def add_evaluation(
    vector: SteeringVector, evaluation: Evaluation, certificate: Certificate | None = None
) -> SteeringVector:
    """The vector with its verdict, and with what steering then uses by default.

    Where nothing was measured a learned vector is added as it was learned, another as if never evaluated.

    ``certificate``: what it takes to measure the same again; one that the vector had before goes.
    """
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
        CERTIFICATE: certificate.to_json() if certificate else None,
    }
    # Right answers were counted at the setting of an earlier evaluation.
    before = {key: value for key, value in vector.metadata.items() if key not in {*found, TASKS}}
    if measured or is_learned(vector):
        recommended = (best if measured else AS_LEARNED).written_into(before)
    else:
        recommended = without_recommendation(before)
    if certificate is None:
        del found[CERTIFICATE]
    return replace(vector, metadata={**recommended, **found})


def specificity_of(answers: list[str], styles: Mapping[str, Style]) -> dict[str, float]:
    """Share of ``answers`` in each of ``styles``, judged by that style's markers; thoughts do not count."""
    judged = answers_of(answers)
    return {name: round(sum(map(style.is_shown_in, judged)) / len(judged), 4) for name, style in styles.items()}
