"""What ends, and what goes on: nothing is lost to an error of the account, and nothing is paid after an end."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx2
import openai
import pytest
from click.testing import CliRunner

from factory.config import Settings
from factory.counters import open_counters
from factory.errors import RunPaused, StyleEnded, TeacherPaced
from factory.evaluation import judged
from factory.planning.plan import plan_run
from factory.run.asking import begin_spending, spent_usd
from factory.run.entries import Ended
from factory.run.ledger import Ledger
from factory.run.pause import pause_run, reopen_run, require_unended
from factory.steps.write import write_step
from factory.store import Store
from factory.teacher.connection import open_client
from factory.teacher.spending import Purse
from factory.teacher.tally import paid_by_all
from tests.scripted import LOCAL, STYLE, Scripted, teacher_at

NAME = "step_by_step_reasoning"
SETTINGS = Settings(
    styles=[NAME], base_url="http://teacher.test/v1", regenerate_datasets=True, pricing={"input": 1.0, "output": 4.0}
)


class Account(Scripted):
    """A server that answers well, or with one status."""

    status = 200

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().answer(request)
        return answer if self.status == 200 else httpx2.Response(self.status, json={"error": {"message": "no"}})


@pytest.fixture
def server(monkeypatch):
    server = Account()
    client = openai.OpenAI(
        api_key="k", base_url=LOCAL.base_url, max_retries=0, http_client=httpx2.Client(transport=server)
    )
    monkeypatch.setattr("factory.run.asking.open_client", lambda *asked: client)
    return server


def run_of(store, tmp_path, **settings) -> Ledger:
    plan = plan_run(SETTINGS.model_copy(update=settings), store, tmp_path, limit=24)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    return ledger


@pytest.mark.parametrize("status", [402, 407, 418])
def test_an_account_s_error_pauses_the_run_and_costs_no_batch(store, tmp_path, broker, server, status):
    ledger = run_of(store, tmp_path)
    server.status = status
    with pytest.raises(RunPaused):
        write_step(ledger.of(NAME), 0, SETTINGS, broker)
    assert ledger.of(NAME).written(0) is None
    server.status = 200
    reopen_run(ledger, broker)
    write_step(ledger.of(NAME), 0, SETTINGS, broker)
    assert "bad_request" not in ledger.of(NAME).written(0).reasons


def test_nothing_is_asked_for_a_batch_that_was_given_up(store, tmp_path, broker, server):
    ledger = run_of(store, tmp_path)
    ledger.of(NAME).give_up(0, "worker_died")
    server.status = 402  # a call would pause the run
    write_step(ledger.of(NAME), 0, SETTINGS, broker)
    assert ledger.paused() is None
    assert ledger.of(NAME).written(0) is None


def test_questions_that_no_answer_decided_are_asked_again(store, tmp_path, broker, server):
    ledger = run_of(store, tmp_path)
    server.status = 400
    with suppress(RunPaused):  # half of the last 20 calls failed
        for number in range(len(ledger.of(NAME).batches)):
            write_step(ledger.of(NAME), number, SETTINGS, broker)
    assert ledger.paused().reason == "failing"
    recorded = ledger.of(NAME).listing().numbers("written")
    reopen_run(ledger, broker)
    ledger.of(NAME).forget_unanswered()
    server.status = 200
    for number in range(len(ledger.of(NAME).batches)):
        write_step(ledger.of(NAME), number, SETTINGS, broker)
        assert "bad_request" not in ledger.of(NAME).written(number).reasons
    assert len(recorded) < len(ledger.of(NAME).batches)


def test_a_resume_takes_another_share_of_failures_and_keeps_it(store, tmp_path, broker):
    ledger = run_of(store, tmp_path)
    assert ledger.max_failed_fraction == SETTINGS.max_failed_fraction
    reopen_run(ledger, broker, None, 0.5)
    assert Ledger(store, ledger.run_id).max_failed_fraction == 0.5
    assert ledger.max_cost_usd is None


def test_a_resumed_run_keeps_its_cap_whatever_the_configuration_says_now(store, tmp_path, monkeypatch):
    from factory.cli import svf
    from factory.commands import runs

    asked = []
    ledger = run_of(store, tmp_path, max_cost_usd=5.0)
    (tmp_path / "c.yaml").write_text(f"max_cost_usd: 100\nstore: {store.url}\n")
    monkeypatch.setattr(runs, "use_broker", lambda job: None)
    monkeypatch.setattr("workers.flow.submit.require_broker", lambda: None)
    monkeypatch.setattr("workers.flow.shared_store.require_shared_store", lambda *_: None)
    monkeypatch.setattr("workers.flow.submit.resume", lambda ledger, **bounds: asked.append(bounds) or [])
    words = [ledger.run_id, "--config", str(tmp_path / "c.yaml")]
    for flags in ([], ["--max-cost-usd", "7", "--max-failed-fraction", "0.4"]):
        CliRunner().invoke(svf, ["resume", *words, *flags], catch_exceptions=False, standalone_mode=False)
    assert asked == [
        {"max_cost_usd": None, "max_failed_fraction": None},
        {"max_cost_usd": 7.0, "max_failed_fraction": 0.4},
    ]


def test_a_new_run_s_purse_is_filled_by_nobody_and_an_empty_one_without_reading_replies(
    store, tmp_path, broker, server, monkeypatch
):
    ledger, read = run_of(store, tmp_path, max_cost_usd=5.0), []
    settings = SETTINGS.model_copy(update={"max_cost_usd": 5.0})
    begin_spending(ledger, broker)
    monkeypatch.setattr("factory.run.asking.spent_usd", lambda _: pytest.fail("a new run has spent nothing"))
    write_step(ledger.of(NAME), 0, settings, broker)
    monkeypatch.undo()
    paid = sum(store.read_json(f"replies/{name}")["cost_usd"] for name in store.names("replies"))
    assert paid_by_all(store, ledger.run_id) == pytest.approx(paid)
    store.delete(f"{ledger.run_id}/{NAME}/written-000000.json")  # as if its worker had been killed
    old = Store.read
    monkeypatch.setattr(Store, "read", lambda self, key: read.append(key) or old(self, key))
    assert spent_usd(Ledger(store, ledger.run_id)) == pytest.approx(paid)
    assert not [key for key in read if key.startswith("replies/")]


def test_an_empty_purse_is_filled_once_however_many_ask(broker):
    fills, gate = [], threading.Barrier(8)

    def fill() -> float:
        fills.append(1)
        return 0.25

    purse = Purse(open_counters(broker), uuid.uuid4().hex, 1.0, fill, 600)

    def reserve(call: int) -> None:
        gate.wait()
        while True:
            try:
                return purse.reserve(f"call {call}", 0.01)
            except TeacherPaced:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reserve, range(8)))
    assert purse.spent_usd == 0.25
    assert len(fills) == 1


def test_a_run_that_is_paused_is_not_counted_again(store, tmp_path, monkeypatch):
    ledger = run_of(store, tmp_path)
    pause_run(ledger, "key", "the first reason")
    monkeypatch.setattr("factory.run.pause.spent_usd", lambda _: pytest.fail("counted again"))
    assert pause_run(ledger, "quota", "another").reason == "key"


def test_a_judge_that_is_not_there_is_given_up_in_words_and_asked_once(store, monkeypatch):
    monkeypatch.setattr(judged, "TRIES", 1)
    spec = LOCAL.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    judge = replace(teacher_at(Scripted(), store, spec), client=open_client(spec.base_url, None, 5.0))
    score = judged.AnswerJudge(judge, STYLE, 2).score
    figures, cost = score(["Why?", "How?"], ["So.", "Thus."])
    assert "http://127.0.0.1:9/v1 cannot be reached" in str(figures.failed)
    assert cost == 0.0
    monkeypatch.setattr(judged, "ask_judge", lambda *_, **__: pytest.fail("asked again"))
    assert score(["Why?"], ["So."])[0] == figures


def test_a_judge_s_call_that_may_have_been_paid_is_not_repeated_where_nobody_counts(store):
    calls = []

    def lost(request: httpx2.Request) -> httpx2.Response:
        calls.append(request)
        raise httpx2.ReadTimeout("slow")

    score = judged.AnswerJudge(teacher_at(httpx2.MockTransport(lost), store), STYLE, 1).score
    assert "ReadTimeout" in str(score(["Why?"], ["So."])[0].failed)
    assert len(calls) == 1


def test_a_cancelled_style_asks_no_teacher_and_no_judge(store, tmp_path, broker, server):
    ledger = run_of(store, tmp_path)
    ledger.of(NAME).finish(Ended(state="failed", message="cancelled"))
    with pytest.raises(StyleEnded):
        write_step(ledger.of(NAME), 0, SETTINGS, broker)
    score = judged.AnswerJudge(teacher_at(server, store), STYLE, 1, lambda: require_unended(ledger.of(NAME))).score
    with pytest.raises(StyleEnded):
        score(["Why?"], ["So."])
    assert server.bodies == []


def test_a_cancelled_style_is_not_evaluated_and_sends_nothing(store, tmp_path, monkeypatch):
    from workers import gpu, reduce
    from workers.flow import task

    ledger = run_of(store, tmp_path)
    ledger.of(NAME).finish(Ended(state="failed", message="cancelled"))
    monkeypatch.setattr(task, "open_store", lambda: store)
    monkeypatch.setattr(gpu, "evaluate_step", lambda *_, **__: pytest.fail("evaluated"))
    monkeypatch.setattr(reduce, "_send_parts", lambda *_, **__: pytest.fail("sent"))
    gpu.evaluate_part.apply((ledger.run_id, NAME, 0), throw=True)
    reduce.check_choice.apply(([], ledger.run_id, NAME), throw=True)
