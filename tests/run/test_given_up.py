"""A batch that was given up: whatever comes of it once more changes nothing."""

import pytest

from factory.config import Settings
from factory.planning.plan import plan_run
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.steps.extract import extract_step

STYLE = "step_by_step_reasoning"


@pytest.fixture
def ledger(store, tmp_path):
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    return ledger


def test_a_batch_that_was_given_up_and_comes_once_more_stays_given_up(ledger, store):
    ledger.of(STYLE).give_up(1, "worker_died")
    before = store.read(f"{ledger.run_id}/{STYLE}/extracted-000001.json")

    again = Ledger(store, ledger.run_id).of(STYLE)
    extract_step(again, 1, Settings(styles=[STYLE]))

    assert store.read(f"{ledger.run_id}/{STYLE}/extracted-000001.json") == before
    assert again.extracted(1).key is None
    assert progress_of(again).reasons == {"worker_died": 16}


def test_an_entry_of_an_older_version_may_lack_fields_and_one_of_a_newer_may_hold_more(ledger, store):
    old = {"key": "batches/x.safetensors", "n_pairs": 16, "reasons": {}, "told_by_a_newer_version": 1}
    store.write_json(f"{ledger.run_id}/{STYLE}/extracted-000000.json", old)
    entry = ledger.of(STYLE).extracted(0)
    assert (entry.n_pairs, entry.seconds, entry.peak_memory_mib) == (16, None, 0)
