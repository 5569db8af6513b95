"""The evaluation of a style's vector within a run, part by part, from store to store.

Like the steps before (steps.py), each may run twice, on any machine, and gives the same result.
Parts are numbered in the order of ``EvaluationSpec.parts``. A vector whose evaluation
fails is still a vector: the style ends as done, and says that it was not evaluated.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from factory.benchmark.outcome import right_answers_of
from factory.config import Settings
from factory.errors import StoreError, TeacherRefused
from factory.evaluation.evaluation import TASKS, Evaluation
from factory.evaluation.judged import AnswerJudge, Scorer, Silent
from factory.evaluation.spec import MEAN, EvaluationSpec
from factory.files import sha256_of
from factory.log import log
from factory.run.asking import open_judge
from factory.run.entries import Ended, Measured, NotEvaluated
from factory.run.page import Page
from factory.run.pause import require_unended
from factory.steps.learn import made_of, mean_of
from factory.steps.resident import target_of
from factory.steps.tasks import do_task, task_results
from factory.teacher.replies import Payer
from factory.teacher.writing import PATIENCE

if TYPE_CHECKING:
    from factory.vector.vector import SteeringVector


def evaluate_step(page: Page, number: int, settings: Settings, broker_url: str = "", *, patient: bool = True) -> None:
    """Do one part of a style's evaluation with the target model, and ask the judge if the run has one.

    ``broker_url``: where workers count calls and money together. Not ``patient``: without the judge.

    Raises:
        ConfigError, TargetError: the model cannot be used here.
        StoreError: the vector, or a part that this one builds on, is missing.
        TeacherBusy: the judge is not through; answers and replies are kept, so try again.
    """
    if page.part(number):
        return
    from factory.evaluation.examiner import Examiner

    spec = page.ledger.spec.evaluation
    if spec is None:
        return
    target = target_of(page.ledger.spec, settings)
    if number >= len(spec.parts):
        task_part = page.ledger.spec.task_parts[number - len(spec.parts)]
        page.record_part(number, do_task(page, task_part, target, _vector(page)))
        log.info("evaluation: %s on %s done", task_part.role, task_part.task.name)
        return
    part = spec.parts[number]
    scorer = _scorer(page, number, settings, broker_url) if patient else _missing_judge(spec)
    mean = mean_of(page) if spec.mean else None
    examiner = Examiner(target, _vector(page), page.style, spec, page.store, scorer, mean)
    page.record_part(number, examiner.examine(part, page.evaluated()))
    log.info("evaluation: %s done", part)


def _scorer(page: Page, number: int, settings: Settings, broker_url: str) -> Scorer | None:
    """The run's judge, who has some minutes for this part; None without one."""
    spec = page.ledger.spec.evaluation
    if spec is None or spec.judge_model is None:
        return None
    payer = Payer(page.ledger.run_id, page.name, -1 - number)  # below 0: no batch of pairs
    try:
        judge = open_judge(page.ledger, payer, settings, broker_url, spec.judge_model)
    except TeacherRefused as error:
        return Silent(spec.judge_model, str(error))
    judge = replace(judge, deadline=time.monotonic() + min(PATIENCE, settings.visibility_timeout / 5))
    return AnswerJudge(judge, page.style, settings.max_concurrent_calls, lambda: require_unended(page))


def _missing_judge(spec: EvaluationSpec) -> Scorer | None:
    return Silent(spec.judge_model, "the judge did not answer in time") if spec.judge_model else None


def conclude_step(page: Page) -> None:
    """Write the verdict into the style's vector, and end the style.

    Raises:
        StoreError: a part is missing; the style can be resumed.
    """
    spec = page.ledger.spec
    if page.result or spec.evaluation is None:
        return
    from factory.benchmark.certified import certify_task
    from factory.evaluation.certificate import certify_evaluation
    from factory.evaluation.verdict import add_evaluation, conclude, specificity_of

    missing = [*page.missing_parts(checks=False), *page.missing_parts(checks=True)]
    if missing:
        raise StoreError(f"style {page.name!r}: parts {missing} of its evaluation are missing; 'svf resume' does them")
    done = page.evaluated()
    styles = {part.style.name: part.style for part in spec.styles}
    specificity = specificity_of(page.store.require_json(done.states["steered"].answers), styles)
    results = task_results(page)
    evaluation = conclude(page.style, spec.evaluation, done, specificity, right_answers_of(results))
    vector = _vector(page)
    tasks = [certify_task(task, result) for task, result in zip(spec.tasks, results, strict=True)]
    certificate = certify_evaluation(vector, page.style, spec.evaluation, done, evaluation, tasks=tasks)
    evaluated = add_evaluation(vector, evaluation, certificate)
    if spec.tasks:
        evaluated.metadata[TASKS] = [result.to_json() for result in results]
    content = evaluated.to_pt()
    page.store.write(page.vector_key, content)
    log.info("evaluated: %s, effect %+.2f", evaluation.verdict, evaluation.effect)
    page.finish(Ended.after(*made_of(page), _in_short(evaluation, sha256_of(content))))


def _in_short(evaluation: Evaluation, vector_sha256: str) -> Measured:
    """What a person wants to know at once."""
    steered, mean = evaluation.measured["steered"], evaluation.measured.get(MEAN)
    return Measured(
        vector_sha256=vector_sha256,
        verdict=evaluation.verdict,
        setting=evaluation.setting.describe(),
        unsteered=evaluation.measured["unsteered"].share,
        steered=steered.share,
        mean=mean.share if mean else None,
        loops=steered.loops,
        mean_loops=mean.loops if mean else None,
    )


def give_up_evaluation(page: Page, reason: str) -> None:
    """End a style whose evaluation failed: its vector stays, without a verdict."""
    if page.reduced() and not page.result:
        log.error("evaluation failed: %s", reason)
        failed = NotEvaluated(evaluation="failed", message=f"made, but not evaluated: {reason}")
        page.finish(Ended.after(*made_of(page), failed))


def _vector(page: Page) -> SteeringVector:
    from factory.vector.vector import SteeringVector

    content = page.store.read(page.vector_key)
    if content is None:
        raise StoreError(f"the vector of style {page.name!r} is gone from the store; 'svf resume' makes it")
    return SteeringVector.from_bytes(content, source=f"{page.name}.pt")
