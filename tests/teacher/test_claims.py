"""Claims on calls: one worker makes a call, on whatever broker, and a lost claim is noticed."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from factory.errors import TeacherPaced
from factory.store import Store
from factory.teacher import claims
from factory.teacher.claims import claimed
from tests.scripted import Scripted, said, teacher_at


def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request, tmp_path, monkeypatch):
    """A store on each kind of storage; S3 is a real server."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        store = Store(f"s3://factory/{key()}")
        yield store
        type(store.files).clear_instance_cache()  # or other tests would get this server's
        return
    yield Store(str(tmp_path) if request.param == "folder" else f"memory://{key()}")


def test_a_call_is_made_by_one_at_a_time_and_free_again_afterwards(store):
    call = key()
    with claimed(store, call), pytest.raises(TeacherPaced), claimed(store, call):
        pass
    with claimed(store, call):
        pass
    assert store.names("claims") == []


def test_of_many_that_find_a_dead_worker_s_claim_one_takes_it_over(store):
    call = key()
    store.write_json(f"claims/{call}.0.json", {"owner": "dead", "until": time.time() - 1})
    gate, holding = threading.Barrier(16), threading.Event()

    def take(_: int) -> bool:
        gate.wait()
        try:
            with claimed(store, call):
                holding.wait(10)
                return True
        except TeacherPaced:
            return False

    with ThreadPoolExecutor(16) as pool:
        tries = [pool.submit(take, at) for at in range(16)]
        while sum(one.done() for one in tries) < 15:
            time.sleep(0.01)
        holding.set()
        assert sum(one.result() for one in tries) == 1
    assert store.names("claims") == []


def test_a_claim_is_renewed_for_as_long_as_its_call_runs(store, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 3.0)  # a busy machine may take a second for a renewal
    monkeypatch.setattr(claims, "RENEWAL", 0.05)
    call = key()
    with claimed(store, call):
        first = store.read_json(f"claims/{call}.0.json")["until"]
        while store.read_json(f"claims/{call}.0.json")["until"] < first + 1.0:
            with pytest.raises(TeacherPaced), claimed(store, call):
                pass
            time.sleep(0.05)


def test_who_slept_through_its_lease_notices_and_does_not_send(store, monkeypatch):
    monkeypatch.setattr(claims, "RENEWAL", 0.0)
    monkeypatch.setattr(claims.Claim, "_keep", lambda self: None)
    call = key()
    with claimed(store, call) as mine:
        mine.require()
        store.write_json(f"claims/{call}.1.json", {"owner": "another", "until": time.time() + 60})
        with pytest.raises(TeacherPaced):
            mine.require()
    assert f"{call}.1.json" in store.names("claims"), "the other's claim stays"


def test_two_runs_on_one_store_pay_once_for_a_call_that_both_make(store):
    asked, answer = threading.Event(), threading.Event()

    class Slow(Scripted):
        def answer(self, request: httpx2.Request) -> httpx2.Response:
            asked.set()
            answer.wait(10)
            return super().answer(request)

    server = Slow(said("An answer."))
    with ThreadPoolExecutor(1) as pool:  # no broker is shared: as two machines with one of their own each
        first = pool.submit(teacher_at(server, store).ask, "hello")
        asked.wait(10)
        with pytest.raises(TeacherPaced):
            teacher_at(server, store).ask("hello")
        answer.set()
        assert first.result().text == teacher_at(server, store).ask("hello").text
    assert len(server.bodies) == 1


def test_of_two_answers_to_one_call_the_first_that_is_kept_stays(store):
    class Overtaken(Scripted):
        def answer(self, request: httpx2.Request) -> httpx2.Response:
            if len(self.bodies) == 0:
                self.bodies.append({})
                monkey.ask("hello")
            return super().answer(request)

    monkey = teacher_at(Scripted(said("The other's.")), Store(store.url))
    context = pytest.MonkeyPatch()
    with context.context() as patch:
        patch.setattr("factory.teacher.client.claimed", lambda *_: claimed(store, key()))
        reply = teacher_at(Overtaken(said("Ours.")), store).ask("hello")
    assert reply.text == "The other's."
