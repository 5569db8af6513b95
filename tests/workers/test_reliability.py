"""What makes a task safe to run anywhere: settings, limits, attempts, arguments, the broker's keys."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import redis
from celery.backends.redis import RedisBackend
from celery.exceptions import ChordError, Reject
from celery.result import AsyncResult
from hypothesis import given
from hypothesis import strategies as st

from factory.celery import app
from factory.cluster.broker import give_back, ids_in_flight, queue_depth
from factory.config import Settings
from factory.errors import ConfigError, StyleFailed, TaskTooLong
from factory.planning.plan import plan_run
from factory.run.entries import Ended, Try
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from workers.flow.task import check_arguments, run_guarded, time_limit
from workers.flow.tries import MAX_TRIES, Tries, is_alive, this_worker
from workers.reduce import _is_final

STYLE = "step_by_step_reasoning"
EFFECTIVE = """
import json
from factory.celery import app
names = %r
options = dict(app.conf.broker_transport_options)
print(json.dumps({"conf": {n: app.conf[n] for n in names}, "options": options,
                  "queues": sorted(q.name for q in app.conf.task_queues)}))
"""
EXPECTED = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "worker_deduplicate_successful_tasks": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "result_backend_always_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "worker_pool": "threads",
    "worker_eta_task_limit": 1000,
    "worker_send_task_events": True,
    "worker_hijack_root_logger": False,
}


def settings_of_a_worker(**environment):
    ended = subprocess.run(
        [sys.executable, "-c", EFFECTIVE % [*EXPECTED, "result_expires", "result_chord_expires", "visibility_timeout"]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


def test_a_worker_has_every_setting_that_keeps_work_from_being_lost():
    found = settings_of_a_worker()
    assert {name: found["conf"][name] for name in EXPECTED} == EXPECTED
    assert found["conf"]["result_chord_expires"] >= 7 * 24 * 3600 > found["conf"]["result_expires"] >= 24 * 3600
    assert found["options"]["visibility_timeout"] == found["conf"]["visibility_timeout"] == 600
    assert found["options"]["unacked_restore_throttle"] == 1
    assert found["options"]["unacked_restore_interval"] <= 10
    assert found["options"]["max_connections"] >= 100
    assert {"teacher", "gpu", "reduce"} <= set(found["queues"])


def test_the_visibility_timeout_of_the_configuration_reaches_broker_and_backend():
    found = settings_of_a_worker(FACTORY_VISIBILITY_TIMEOUT="90")
    assert found["options"]["visibility_timeout"] == found["conf"]["visibility_timeout"] == 90


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-Q", "gpu"], "queues gpu: 1 at a time (fits the queues; -c changes it)"),
        (["-Q", "teacher"], "queues teacher: 32 at a time (fits"),
        (["-Q", "gpu,reduce"], "queues gpu,reduce: 1 at a time (fits"),
        (["-Q", "teacher", "-c", "5"], "queues teacher: 5 at a time (chosen by -c)"),
    ],
)
def test_a_worker_says_how_many_tasks_it_takes_and_a_given_number_wins(broker, words, said, tmp_path):
    log = tmp_path / "worker.log"
    with log.open("wb") as sink:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "factory", "worker", *words],
            cwd=tmp_path,
            env=os.environ | {"FACTORY_BROKER_URL": broker},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    number = said.split(": ")[1].split(" ")[0]
    banner = f"concurrency: {number} (thread)"
    try:
        deadline = time.monotonic() + 60
        while banner not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert said in log.read_text()
        assert banner in log.read_text()
    finally:
        worker.kill()
        worker.wait()


STUCK = """
import sys, threading
from celery import shared_task
from factory.celery import app
@shared_task(name="stuck", queue="gpu")
def stuck():
    print("stuck for ever", flush=True)
    threading.Event().wait()
app.send_task("stuck", queue="gpu")
app.worker_main(["worker", "-Q", "gpu"])
"""


def test_a_worker_that_cannot_stop_ends_when_its_tasks_go_to_others(client, broker, tmp_path):
    environment = os.environ | {"FACTORY_BROKER_URL": broker, "FACTORY_VISIBILITY_TIMEOUT": "3"}
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert any("stuck for ever" in line for line in worker.stdout)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 1
        finally:
            worker.kill()


def test_a_mistyped_queue_is_refused(tmp_path):
    words = [sys.executable, "-m", "celery", "-A", "factory", "worker", "-Q", "gpus"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "no queue gpus: there are teacher, gpu, reduce and gpu.<model>" in ended.stderr


def test_a_run_that_asks_for_it_gets_a_queue_of_its_model_and_only_its_workers_see_it(svf, client, broker, tmp_path):
    place = {"FACTORY_BROKER_URL": broker, "FACTORY_STORE": str(tmp_path / "store"), "FACTORY_GPU_QUEUE": "model"}
    assert svf("enqueue", "-s", STYLE, FACTORY_TARGET_MODEL="Some/Model-7B", **place).status == 0
    assert (client.llen("gpu"), client.llen("gpu.some-model-7b")) == (0, 3)


def test_a_task_that_takes_too_long_is_ended_on_a_thread_and_says_what_to_do():
    def endless():
        with time_limit(0.2, "batch 3"):
            while True:
                time.sleep(0.01)

    with pytest.raises(TaskTooLong, match=r"batch 3 took longer than 0.2 s.*batch_size"):
        endless()


def test_a_task_that_is_quick_is_left_alone():
    with time_limit(0.05, "batch"):
        pass
    time.sleep(0.1)  # the limit has passed, and nothing happens to us


@given(st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text()), st.text()))
def test_arguments_that_are_no_names_are_refused(value):
    if isinstance(value, str) and value.replace("_", "a").replace("-", "a").isalnum() and value.isascii():
        return
    for run, style in ((value, STYLE), ("20261123-154504-5d6f", value)):
        with pytest.raises(ConfigError, match="task arguments"):
            check_arguments(run, style)


@pytest.mark.parametrize("path", ["../secret", "a/b", "/etc/passwd", ".", "..", "a\n", "", "x" * 65])
def test_a_path_is_no_name_of_a_run_or_style(path):
    with pytest.raises(ConfigError):
        check_arguments(path, STYLE)
    with pytest.raises(ConfigError):
        check_arguments("run", path)


@pytest.fixture
def ledger(store, tmp_path):
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    return ledger


def a_try(**changes):
    return Try.model_validate(this_worker().to_json() | {"since": time.time(), "ended": False} | changes)


def a_dead_worker():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return a_try(pid=ended.pid, token="another")


def test_a_batch_is_given_up_when_its_third_worker_has_died(ledger):
    tries = Tries(ledger.of(STYLE), "extract_batch-000001", True, 600)
    for count in range(1, MAX_TRIES):  # the first death is not written down: nobody knew that it would be one
        assert not tries.exhausted(), count
        ledger.of(STYLE).note_try("extract_batch-000001", f"try{count}", a_dead_worker())
    assert tries.exhausted()
    assert not Tries(ledger.of(STYLE), "extract_batch-000002", True, 600).exhausted()


def test_tries_that_are_under_way_or_ended_well_do_not_count(ledger):
    well = {"ended": True}
    for name, entry in {"a": a_try(), "b": a_try(**well), "c": a_dead_worker().model_copy(update=well)}.items():
        ledger.of(STYLE).note_try("extract_batch-000000", name, entry)
    assert not Tries(ledger.of(STYLE), "extract_batch-000000", True, 600).exhausted()


def test_a_worker_on_another_host_is_believed_for_as_long_as_a_task_may_take():
    far = a_try(host="elsewhere", pid=1, token="x", since=1000.0)
    assert is_alive(far, now=1500.0, longest=600)
    assert not is_alive(far, now=1700.0, longest=600)


def test_a_container_that_started_again_is_not_its_former_self():
    assert not is_alive(a_try(token="before"), time.time(), 600)


def test_a_batch_that_was_given_up_is_tried_again_after_resume(ledger):
    ledger.of(STYLE).give_up(2, "worker_died")
    assert progress_of(ledger.of(STYLE)).reasons == {"worker_died": 16}
    assert 2 not in ledger.of(STYLE).missing_numbers()
    ledger.of(STYLE).forget_given_up()
    assert ledger.of(STYLE).missing_numbers() == [0, 1, 2]


def message(name):
    return {"headers": {"id": name, "sent_at": 5.0}, "properties": {"delivery_info": {}}, "body": ""}


@pytest.fixture
def client(broker):
    client = redis.Redis.from_url(broker)
    client.flushall()
    return client


def test_ids_of_all_messages_are_found_in_queues_of_every_priority_and_in_hands(client):
    waiting = [f"w{n}" for n in range(2500)]
    client.lpush("gpu", *(json.dumps(message(name)) for name in waiting))
    client.lpush("gpu\x06\x166", json.dumps(message("low")))
    client.hset("unacked", "tag", json.dumps([message("held"), "gpu", "gpu"]))
    assert ids_in_flight(client, ["gpu"]) == {*waiting, "low", "held"}
    depth = queue_depth(client, "gpu")
    assert (depth.waiting, depth.oldest_sent_at) == (2501, 5.0)


def test_what_a_dead_worker_held_goes_back_to_its_own_queue_alone(client):
    for name, queue in (("a", "gpu"), ("b", "teacher")):
        client.hset("unacked", name, json.dumps([message(name), queue, queue]))
        client.zadd("unacked_index", {name: 1})
    assert give_back(client, ["gpu", "reduce"]) == 1
    (raw,) = client.lrange("gpu", 0, -1)
    assert json.loads(raw)["headers"] == {"id": "a", "sent_at": 5.0, "redelivered": True}
    assert client.hkeys("unacked") == client.zrange("unacked_index", 0, -1) == [b"b"]


class Message:
    """The part of a task that guards look at."""

    def __init__(self, name: str, *, again: bool) -> None:
        self.name = name
        self.request = self
        self.id, self.retries, self.delivery_info = "an-id", 0, {"redelivered": again}


@pytest.fixture
def of_this_store(ledger, monkeypatch):
    monkeypatch.setattr("workers.flow.task.open_store", lambda: ledger.store)
    return ledger


@pytest.mark.parametrize(
    "kind", ["workers.gpu.evaluate_part", "workers.reduce.check_choice", "workers.reduce.reduce_vector"]
)
def test_no_task_of_any_kind_works_for_a_style_that_has_ended(kind, of_this_store):
    of_this_store.of(STYLE).finish(Ended(state="failed", message="cancelled"))
    did = []
    run_guarded(
        Message(kind, again=False), of_this_store.run_id, STYLE, lambda *_: did.append(1), lambda *_: did.append(2)
    )
    assert did == []


def test_a_part_of_the_evaluation_whose_third_worker_died_is_given_up(of_this_store):
    for count in range(2):
        of_this_store.of(STYLE).note_try("evaluate_part-000004", f"try{count}", a_dead_worker())
    said = []
    message = Message("workers.gpu.evaluate_part", again=True)
    run_guarded(
        message,
        of_this_store.run_id,
        STYLE,
        lambda *_: said.append("worked"),
        lambda _, why: said.append(why),
        number=4,
    )
    assert said == ["evaluate_part 4 ended its worker 3 times and is given up"]


@pytest.mark.parametrize(
    ("raised", "final"),
    [
        (StyleFailed("too few pairs"), True),
        (ChordError("Dependency raised ConnectionError"), False),
        (redis.ConnectionError("Connection refused"), False),
        # what celery raises in a task whose retry could not be sent: the broker died under its worker
        (Reject(AttributeError("'NoneType' object has no attribute 'client'"), requeue=False), False),
    ],
    ids=["its own", "of a chord", "of the broker", "of a retry"],
)
def test_only_what_a_task_did_itself_fails_its_style(raised, final, broker):
    backend = RedisBackend(app=app, url=broker)
    backend.store_result("failed-task", raised, "FAILURE")
    assert _is_final(AsyncResult("failed-task", backend=backend, app=app)) is final
