"""The evaluation of a style's vector within a run, part by part, from store to store.

Like the steps before (steps.py), each may run twice, on any machine, and gives the same result.
Parts are numbered in the order of ``EvaluationSpec.parts``. A vector whose evaluation
fails is still a vector: the style ends as done, and says that it was not evaluated.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factory.config import Settings
from factory.errors import StoreError, TeacherRefused
from factory.evaluation.judged import Scorer, make_scorer
from factory.evaluation.spec import EvaluationSpec
from factory.files import sha256_of
from factory.log import log
from factory.run.asking import open_judge
from factory.run.ledger import Ledger, done_parts, missing_parts
from factory.run.pause import require_unended
from factory.steps.resident import target_of
from factory.teacher.client import Payer
from factory.teacher.writing import PATIENCE

if TYPE_CHECKING:
    from factory.evaluation.verdict import Evaluation
    from factory.vector.vector import SteeringVector


def evaluate_step(
    ledger: Ledger, style: str, number: int, settings: Settings, broker_url: str = "", *, patient: bool = True
) -> None:
    """Do one part of a style's evaluation with the target model, and ask the judge if the run has one.

    ``broker_url``: where workers count calls and money together. Not ``patient``: without the judge.

    Raises:
        ConfigError, TargetError: the model cannot be used here.
        StoreError: the vector, or a part that this one builds on, is missing.
        TeacherBusy: the judge is not through; answers and replies are kept, so try again.
    """
    if ledger.entry(style, "evaluated", number):
        return
    from factory.evaluation.examiner import Examiner

    spec = ledger.spec.evaluation
    if spec is None:
        return
    part = spec.parts[number]
    target = target_of(ledger.spec, settings)
    scorer = _scorer(ledger, style, number, settings, broker_url) if patient else _missing_judge(spec)
    vector, words = _vector(ledger, style), ledger.spec.style_run(style).style
    examiner = Examiner(target, vector, words, spec, ledger.store, scorer)
    ledger.record(style, "evaluated", number, examiner.examine(part, done_parts(ledger, style)))
    log.info("evaluation: %s done", part)


def _scorer(ledger: Ledger, style: str, number: int, settings: Settings, broker_url: str) -> Scorer | None:
    """The run's judge, who has some minutes for this part; None without one."""
    spec = ledger.spec.evaluation
    if spec is None or spec.judge_model is None:
        return None
    payer = Payer(ledger.run_id, style, -1 - number)  # below 0: no batch of pairs
    try:
        judge = open_judge(ledger, payer, settings, broker_url, spec.judge_model)
    except TeacherRefused as error:
        return _silent(spec.judge_model, str(error))
    judge = replace(judge, deadline=time.monotonic() + min(PATIENCE, settings.visibility_timeout / 5))
    return make_scorer(
        judge,
        ledger.spec.style_run(style).style,
        max_concurrent=settings.max_concurrent_calls,
        may_go_on=lambda: require_unended(ledger, style),
    )


def _missing_judge(spec: EvaluationSpec) -> Scorer | None:
    return _silent(spec.judge_model, "the judge did not answer in time") if spec.judge_model else None


def _silent(model: str, why: str) -> Scorer:
    """No scores, and why."""
    return lambda questions, answers: ({"model": model, "failed": why}, 0.0)


def conclude_step(ledger: Ledger, style: str) -> None:
    """Write the verdict into the style's vector, and end the style.

    Raises:
        StoreError: a part is missing; the style can be resumed.
    """
    if ledger.result(style) or ledger.spec.evaluation is None:
        return
    from factory.evaluation.verdict import add_evaluation, conclude, specificity_of

    missing = [*missing_parts(ledger, style, checks=False), *missing_parts(ledger, style, checks=True)]
    if missing:
        raise StoreError(f"style {style!r}: parts {missing} of its evaluation are missing; 'svf resume' does them")
    done = done_parts(ledger, style)
    styles = {part.style.name: part.style for part in ledger.spec.styles}
    specificity = specificity_of(ledger.store.require_json(done["steered"]["answers"]), styles)
    evaluation = conclude(styles[style], ledger.spec.evaluation, done, specificity)
    content = add_evaluation(_vector(ledger, style), evaluation).to_pt()
    ledger.store.write(ledger.vector_key(style), content)
    log.info("evaluated: %s, effect %+.2f", evaluation.verdict, evaluation.effect)
    reduced = ledger.entry(style, "reduced", 0) or {}
    ledger.finish(style, {**reduced, "vector_sha256": sha256_of(content), **_in_short(evaluation)})


def _in_short(evaluation: Evaluation) -> dict[str, Any]:
    """What a person wants to know at once."""
    shares = {name: evaluation.measured[name]["share"] for name in ("unsteered", "steered")}
    return {"verdict": evaluation.verdict, "setting": evaluation.setting.describe(), **shares}


def give_up_evaluation(ledger: Ledger, style: str, reason: str) -> None:
    """End a style whose evaluation failed: its vector stays, without a verdict."""
    reduced = ledger.entry(style, "reduced", 0)
    if reduced and not ledger.result(style):
        log.error("evaluation failed: %s", reason)
        message = f"made, but not evaluated: {reason}"
        ledger.finish(style, {**reduced, "evaluation": "failed", "message": message})


def _vector(ledger: Ledger, style: str) -> SteeringVector:
    from factory.vector.vector import SteeringVector

    content = ledger.store.read(ledger.vector_key(style))
    if content is None:
        raise StoreError(f"the vector of style {style!r} is gone from the store; 'svf resume' makes it")
    return SteeringVector.from_bytes(content, source=f"{style}.pt")
