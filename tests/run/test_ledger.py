"""The ledger: what is written down is what progress, repair and the reduction are answered from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import ConfigError, StoreError
from factory.pairs.dataset import format_dataset
from factory.planning.plan import plan_run
from factory.run.entries import Ended, Extracted
from factory.run.ledger import Ledger, list_runs
from factory.run.progress import progress_of
from factory.run.spec import new_run_id
from factory.store import Store
from tests.conftest import ROOT

STYLE = "step_by_step_reasoning"


def submitted(store, output, **settings):
    plan = plan_run(Settings(styles=[STYLE], **settings), store, output)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    return ledger


@pytest.fixture
def ledger(store, tmp_path):
    return submitted(store, tmp_path)


def test_what_is_created_reads_back_the_same_on_another_machine(store, tmp_path):
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    Ledger(store, plan.spec.run_id).create(plan.spec, plan.batches)
    elsewhere = Ledger(Store(store.url), plan.spec.run_id)
    assert elsewhere.spec == plan.spec
    assert list(elsewhere.of(STYLE).batches) == plan.batches[STYLE]


def test_a_run_that_is_not_there_is_named(store):
    with pytest.raises(ConfigError, match="'20260101-000000-abcd' is not in store"):
        _ = Ledger(store, "20260101-000000-abcd").spec


def test_a_run_id_cannot_lead_out_of_the_store(store):
    with pytest.raises((ConfigError, StoreError), match="not allowed"):
        _ = Ledger(store, "../../etc").spec


def test_a_style_that_the_run_does_not_make_is_named(ledger):
    with pytest.raises(ConfigError, match="does not make style 'creative_explorer'"):
        ledger.spec.style_run("creative_explorer")


def test_a_new_run_waits_and_misses_every_batch(ledger):
    progress = progress_of(ledger.of(STYLE))
    assert (progress.state, progress.pairs, progress.written, progress.extracted) == ("waiting", 48, 48, 0)
    assert ledger.of(STYLE).missing_numbers() == [0, 1, 2]


@given(done=st.lists(st.integers(0, 2), max_size=6))
def test_what_is_missing_is_what_was_not_written_down_in_any_order_and_twice(tmp_path_factory, done):
    folder = tmp_path_factory.mktemp("run")
    ledger = submitted(Store(str(folder / "store")), folder)
    for number in done:
        ledger.of(STYLE).record("extracted", number, Extracted(key=f"batches/{number}", n_pairs=16, reasons={}))
    assert ledger.of(STYLE).missing_numbers() == sorted({0, 1, 2} - set(done))
    progress = progress_of(ledger.of(STYLE))
    assert progress.extracted == 16 * len(set(done))
    assert progress.state == ("running" if done else "waiting")


def test_failed_pairs_are_counted_by_reason(ledger):
    ledger.of(STYLE).record("extracted", 0, Extracted(key="a", n_pairs=14, reasons={"too_long": 2}))
    ledger.of(STYLE).record("extracted", 1, Extracted(key="b", n_pairs=15, reasons={"too_long": 1}))
    progress = progress_of(ledger.of(STYLE))
    assert (progress.extracted, progress.failed, progress.reasons) == (29, 3, {"too_long": 3})


def test_a_finished_style_can_be_reopened_and_keeps_its_batches(ledger):
    ledger.of(STYLE).record("extracted", 0, Extracted(key="a", n_pairs=16, reasons={}))
    ledger.of(STYLE).finish(Ended(state="failed", message="no luck"))
    assert progress_of(ledger.of(STYLE)).state == "failed"
    assert progress_of(ledger.of(STYLE)).message == "no luck"
    ledger.of(STYLE).reopen()
    assert ledger.of(STYLE).result is None
    assert ledger.of(STYLE).missing_numbers() == [1, 2]


def test_a_damaged_entry_is_noticed_not_counted(ledger, store):
    ledger.of(STYLE).record("extracted", 0, Extracted(key="a", n_pairs=16, reasons={}))
    path = store.path(f"{ledger.run_id}/{STYLE}/extracted-000000.json")
    with open(path, "r+") as file:
        text = file.read().replace("16", "99")
        file.seek(0)
        file.write(text)
    with pytest.raises(StoreError, match="SHA-256 does not match"):
        progress_of(Ledger(store, ledger.run_id).of(STYLE))


def test_run_ids_sort_by_time_and_differ():
    ids = [new_run_id() for _ in range(20)]
    assert len(set(ids)) == 20
    assert [identity[:15] for identity in ids] == sorted(identity[:15] for identity in ids)


def test_the_runs_of_a_store_are_listed_and_its_other_folders_are_not(store, tmp_path):
    assert list_runs(store) == []
    made = sorted(submitted(store, tmp_path).run_id for _ in range(3))
    store.write_json("replies/x.json", {})
    assert list_runs(store) == made


def test_pairs_are_kept_once_however_many_runs_use_them(store, tmp_path):
    first, second = submitted(store, tmp_path), submitted(store, tmp_path)
    keys = {batch.pairs_key for ledger in (first, second) for batch in ledger.of(STYLE).batches}
    assert len(keys) == 3
    assert len(store.names("pairs")) == 3


def test_nothing_of_a_key_is_in_the_ledger(store, tmp_path, monkeypatch):
    secret = "sk-a-secret-that-must-not-be-written"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    submitted(store, tmp_path, regenerate_datasets=True)
    written = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert written
    assert not any(secret.encode() in content for content in written)


def test_the_starter_pairs_round_trip_through_their_own_file():
    path = ROOT / "datasets" / f"{STYLE}_pairs.jsonl"
    from factory.pairs.dataset import load_dataset

    metadata, pairs = load_dataset(path)
    assert format_dataset(pairs, metadata) == path.read_text(encoding="utf-8")
