"""What a person is told who ends a run: how it goes on, and what that may cost."""

from pathlib import Path

import pytest

from factory.commands.here import how_to_go_on
from factory.commands.options import Job
from factory.config import Configuration, Settings
from factory.planning.plan import plan_run
from factory.run.ledger import Ledger

STYLE = "step_by_step_reasoning"


def begun(store, output, **given):
    """A job and its run, just written down."""
    settings = Settings(styles=[STYLE], **given)
    plan = plan_run(settings, store, output)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    return Job(Configuration(settings, {}, Path("my settings.yaml")), output, None), ledger


def test_an_interrupted_run_with_a_budget_names_the_command_that_keeps_to_it(store, tmp_path):
    local = {"base_url": "http://127.0.0.1:1/v1", "regenerate_datasets": True}
    priced = {"pricing": {"input": 1, "output": 1}, "max_cost_usd": 2.5}
    job, ledger = begun(store, tmp_path / "my out", **local, **priced)
    said = how_to_go_on(job, ledger)
    words = f"svf resume {ledger.run_id} --here --config 'my settings.yaml' --output '{tmp_path / 'my out'}'"
    assert f"within its $2.5, with: {words}" in said
    assert "starts a new run, which may cost as much again" in said


@pytest.mark.parametrize("given", [{}, {"max_cost_usd": 2.5}])
def test_an_interrupted_run_that_pays_nothing_says_nothing_of_money(store, tmp_path, given):
    job, ledger = begun(store, tmp_path, **given)
    assert "$" not in how_to_go_on(job, ledger)
    assert f"svf resume {ledger.run_id} --here" in how_to_go_on(job, ledger)


def test_of_a_run_that_had_not_begun_nothing_is_said(store, tmp_path):
    job, _ = begun(store, tmp_path)
    assert how_to_go_on(job, Ledger(store, "20260101-000000-abcd")) == ""
