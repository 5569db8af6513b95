"""The faults, by name. Each takes a cluster with a run under way, and breaks something in it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from tests.chaos.cluster import Cluster

Fault = Callable[[Cluster], None]
FAULTS: dict[str, Fault] = {}
KILL, TERM = signal.SIGKILL, signal.SIGTERM


def fault(name: str) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return add


def soon(cluster: Cluster, longest: float = 1.5) -> None:
    time.sleep(cluster.rng.uniform(0, longest))


@fault("gpu worker SIGKILL")
def kill_gpu(cluster: Cluster) -> None:
    soon(cluster)
    name = cluster.rng.choice(["gpu1", "gpu2"])
    cluster.kill_worker(name)
    soon(cluster, 0.5)
    cluster.start_worker(name)


@fault("gpu worker SIGTERM")
def stop_gpu(cluster: Cluster) -> None:
    soon(cluster)
    cluster.kill_worker("gpu1", TERM)
    cluster.start_worker("gpu1")


@fault("gpu worker SIGQUIT")
def quit_gpu(cluster: Cluster) -> None:
    soon(cluster)
    cluster.kill_worker("gpu1", signal.SIGQUIT)
    cluster.start_worker("gpu1")


@fault("reduce worker SIGKILL")
def kill_reduce(cluster: Cluster) -> None:
    soon(cluster, 3)
    cluster.kill_worker("reduce")
    soon(cluster, 0.5)
    cluster.start_worker("reduce")


def _restart_with(cluster: Cluster, sabotage: Callable[[], None]) -> None:
    """Replace both gpu workers by ones that will kill themselves at a chosen line."""
    for name in ("gpu1", "gpu2"):
        cluster.kill_worker(name, TERM)
        cluster.start_worker(name, sabotage)


@fault("killed between result and count")
def kill_before_count(cluster: Cluster) -> None:
    number = cluster.rng.randint(0, 3)

    def sabotage() -> None:
        from celery.backends.redis import RedisBackend

        count, plain = [0], RedisBackend.on_chord_part_return

        def die(*args: object, **named: object) -> None:
            if count[0] == number:
                os.kill(os.getpid(), KILL)
            count[0] += 1
            plain(*args, **named)

        RedisBackend.on_chord_part_return = die

    _restart_with(cluster, sabotage)


@fault("killed between claim and body")
def kill_before_body(cluster: Cluster) -> None:
    def sabotage() -> None:
        from celery.backends.redis import RedisBackend

        RedisBackend._chord_publish_claim_expires = lambda *args: os.kill(os.getpid(), KILL)

    _restart_with(cluster, sabotage)


def _broker_away(cluster: Cluster, how: signal.Signals, seconds: float) -> None:
    soon(cluster)
    cluster.stop_broker(how)
    time.sleep(seconds)
    cluster.start_broker()


@fault("broker SIGKILL, 1 s")
def kill_broker(cluster: Cluster) -> None:
    _broker_away(cluster, KILL, 1)


@fault("broker SIGTERM, 1 s")
def stop_broker(cluster: Cluster) -> None:
    _broker_away(cluster, TERM, 1)


@fault("broker SIGKILL, 15 s")
def broker_long_away(cluster: Cluster) -> None:
    _broker_away(cluster, KILL, 15)


@fault("broker flushed")
def flush_broker(cluster: Cluster) -> None:
    soon(cluster)
    try:
        cluster.client().flushall()
    except OSError:
        pass


@fault("store write errors, 30 %")
def store_errors(cluster: Cluster) -> None:
    seed = cluster.rng.random()

    def sabotage() -> None:
        from factory.errors import StoreError
        from factory.store import Store

        rng, plain = random.Random(seed), Store.write

        def write(self: Store, key: str, content: bytes) -> None:
            if rng.random() < 0.3:
                raise StoreError("store cannot be written: [Errno 28] No space left on device")
            plain(self, key, content)

        Store.write = write

    _restart_with(cluster, sabotage)


TEACHER_KILLED = "teacher worker SIGKILL"


@fault(TEACHER_KILLED)
def kill_teacher(cluster: Cluster) -> None:
    soon(cluster)
    cluster.kill_worker("teacher")
    soon(cluster, 0.5)
    cluster.start_worker("teacher")


EVALUATION_KILLED = "gpu worker killed before a part is noted"


@fault(EVALUATION_KILLED)
def kill_evaluation(cluster: Cluster) -> None:
    """Both gpu workers die with a part of the evaluation done and not yet written down."""
    number = cluster.rng.randint(0, 2)

    def sabotage() -> None:
        _die_before_writing_down("evaluated", number)

    _restart_with(cluster, sabotage)


LEARNING_KILLED = "gpu worker killed before a gradient is noted"


@fault(LEARNING_KILLED)
def kill_learning(cluster: Cluster) -> None:
    """Both gpu workers die with a part of a round read and not yet written down."""
    number = cluster.rng.randint(0, 3)

    def sabotage() -> None:
        _die_before_writing_down("gradient", number)

    _restart_with(cluster, sabotage)


ROUND_KILLED = "reduce worker killed before a round is sent"


@fault(ROUND_KILLED)
def kill_round(cluster: Cluster) -> None:
    """The reduce worker dies with a round taken, and the next one not yet sent."""
    number = cluster.rng.randint(0, 3)

    def sabotage() -> None:
        import workers.reduce

        count, plain = [0], workers.reduce._send_round

        def send(*what: object) -> None:
            if count[0] == number:
                os.kill(os.getpid(), KILL)
            count[0] += 1
            plain(*what)

        workers.reduce._send_round = send

    cluster.kill_worker("reduce", TERM)
    cluster.start_worker("reduce", sabotage)


def _die_before_writing_down(step: str, number: int) -> None:
    """Let this worker kill itself when it would write down its entry ``number`` of ``step``."""
    from factory.run.page import Page

    count, plain = [0], Page._record

    def record(self: Page, at: str, *rest: object) -> None:
        if at == step:
            if count[0] == number:
                os.kill(os.getpid(), KILL)
            count[0] += 1
        plain(self, at, *rest)

    Page._record = record


# These faults are a matter of how the run is started; see __main__.
DUPLICATES = "duplicates (visibility below task time)"
ENQUEUER = "enqueuer SIGKILL while sending"
TEACHER = "teacher faults, 30 %"
GENERATE = "svf generate SIGKILL"
MIXED = "mixed"
ALL = [*FAULTS, DUPLICATES, ENQUEUER, TEACHER, GENERATE, MIXED]


OWN = {TEACHER_KILLED: "taught", EVALUATION_KILLED: "evaluated", LEARNING_KILLED: "learned", ROUND_KILLED: "learned"}


def mixture(rng: random.Random, kind: str) -> list[str]:
    """Two or three faults, one after the other; some meet only one ``kind`` of run."""
    names = [name for name in FAULTS if OWN.get(name, kind) == kind and name != "broker SIGKILL, 15 s"]
    chosen = rng.sample(names, rng.randint(2, 3))
    if kind == "evaluated" and EVALUATION_KILLED not in chosen:  # every evaluation meets its own fault
        chosen[0] = EVALUATION_KILLED
    return chosen
