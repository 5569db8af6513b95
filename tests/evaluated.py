"""A run on a tiny model, made step by step in this process: to its vectors, and to its verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from factory.config import EvaluationSettings, Settings
from factory.planning.plan import plan_run
from factory.run.ledger import Ledger
from factory.run.page import Page
from factory.steps.evaluate import conclude_step, evaluate_step
from factory.steps.extract import extract_step
from factory.steps.learn import learn_part_step, missing_places, next_round, take_round_step
from factory.steps.reduce import reduce_step
from factory.store import Store
from tests.conftest import MEANS

SWEEP = EvaluationSettings(
    limit=4, choice_limit=3, probe_limit=2, cells=2, strengths=[1, 9], positions=[1], max_new_tokens=8
)


def make_run(
    target_folder: Path, output: Path, store: Store, styles: Sequence[str], changes: Mapping[str, object] | None = None
) -> tuple[Ledger, Settings]:
    """A run of ``styles`` whose vectors are made and not evaluated yet; ``changes`` are other settings."""
    usual = {
        "target_model": str(target_folder),
        "device": "cpu",
        "load_in_8bit": False,
        **MEANS,
        "styles": list(styles),
        "extraction_config": {"target_layers": "all", "recipe": "response_last"},
        "evaluation": SWEEP,
    }
    settings = Settings.model_validate({**usual, **(changes or {})})
    plan = plan_run(settings, store, output, limit=6)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    for style in styles:
        for number in ledger.of(style).missing_numbers():
            extract_step(ledger.of(style), number, settings)
        reduce_step(ledger.of(style))
    return ledger, settings


def take_rounds(page: Page, settings: Settings, *, at_most: int = 100) -> None:
    """Take the rounds of a style's learning that are missing; none without learning."""
    for _ in range(at_most):
        number = next_round(page)
        if number is None or page.result:
            return
        for place in missing_places(page, number):
            learn_part_step(page, place, settings)
        take_round_step(page, number)


def do_evaluation(ledger: Ledger, style: str, settings: Settings) -> None:
    """Every part of a style's evaluation that is missing."""
    for checks in (False, True):
        for number in ledger.of(style).missing_parts(checks=checks):
            evaluate_step(ledger.of(style), number, settings)


def finish_run(ledger: Ledger, settings: Settings) -> None:
    """Learn every style that is to be learned, evaluate it, and write the verdicts."""
    for style in settings.styles:
        take_rounds(ledger.of(style), settings)
        do_evaluation(ledger, style, settings)
        conclude_step(ledger.of(style))
