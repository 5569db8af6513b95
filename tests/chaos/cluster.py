"""A small cluster of real processes on a real Valkey, whose parts can be broken one by one.

Workers are forked from this process, which has imported everything, so that one starts in a
fraction of a second. This process itself never connects Celery: a forked connection would be shared.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path

import redis

from factory.cluster.embedded import find_server, free_port, start_child
from factory.run.ledger import Ledger, list_runs
from factory.store import Store
from tests.endpoint import Endpoint

ROOT = Path(__file__).parents[2]
VISIBILITY = 4  # s
LONG_VISIBILITY = 12  # s, where a task does more than read: nine tenths of it are what a task may take
GUARD = 2.5  # s
CALLS = 4  # teacher calls in flight
FAILURES = (500, 503, 429, 0)  # 0: the connection is lost without an answer
STYLE_FILE = """\
description: Numbered steps.
positive_prompt: "{question} Answer in numbered steps."
negative_prompt: "{question} Answer in one plain paragraph."
"""
QUEUES = {"gpu1": "gpu", "gpu2": "gpu", "reduce": "reduce", "teacher": "teacher"}


class Cluster:
    """Broker, workers and store of one seed."""

    def __init__(self, folder: Path, target: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.port, self.password = free_port(), "chaos"
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self.workers: dict[str, int] = {}
        self.broker = None
        self.endpoint: int | None = None
        self.teacher = ""
        self.store_url = str(folder / "store")
        self.settings = {
            "BROKER_URL": self.url,
            "STORE": self.store_url,
            "TARGET_MODEL": str(target),
            "DEVICE": "cpu",
            "LOAD_IN_8BIT": "false",
            "VISIBILITY_TIMEOUT": str(VISIBILITY),
            "GUARD_SECONDS": str(GUARD),
            "THREADS": "1",
            "LOG": str(folder / "events.log"),
            "EXTRACTION_CONFIG__BATCH_SIZE": "4",
            "EXTRACTION_CONFIG__RECIPE": "response_mean",
            "EXTRACTION_CONFIG__N_TOKENS": "4",
            "EXTRACTION_CONFIG__TARGET_LAYERS": "all",
            "OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS": "false",
            "LEARNING__ROUNDS": "0",
        }

    def write_dataset(self, style: str) -> None:
        """The starter pairs in batches of 4, so that there is much to lose."""
        lines = [json.loads(line) for line in (ROOT / "datasets" / f"{style}_pairs.jsonl").read_text().splitlines()]
        own = self.folder / "datasets" / f"{style}_pairs.jsonl"
        own.parent.mkdir(parents=True)
        own.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "batch"}) + "\n" for line in lines))

    def evaluate(self) -> None:
        """Let the run end with an evaluation: nine parts, each of a few short answers."""
        self.settings |= {
            "OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS": "true",
            "EVALUATION__LIMIT": "4",
            "EVALUATION__CHOICE_LIMIT": "3",
            "EVALUATION__PROBE_LIMIT": "2",
            "EVALUATION__CELLS": "2",
            "EVALUATION__MAX_NEW_TOKENS": "8",
            "VISIBILITY_TIMEOUT": str(LONG_VISIBILITY),
        }

    def learn(self) -> None:
        """Let the run learn: seven rounds, each of a few parts, so that there is much to lose."""
        self.settings |= {
            "LEARNING__ROUNDS": "6",
            "LEARNING__PAIRS_PER_PART": "2",
            "LEARNING__RESPONSE_TOKENS": "4",
            "LEARNING__VALIDATE_EVERY": "3",
            "VISIBILITY_TIMEOUT": str(LONG_VISIBILITY),
        }

    def await_round(self, number: int) -> None:
        """Wait until so many rounds of learning are taken, by every style; not for ever."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pages = self.ledger().pages
            if all(len(page.listing().numbers("round")) >= number or page.result for page in pages):
                return
            time.sleep(0.02)

    # ---- the teacher's endpoint

    def start_endpoint(self, style: str, fail: float) -> None:
        """A server of which a share of calls fails; ``style`` has no pairs, so that all are asked of it."""
        port, seed = free_port(), self.rng.randrange(1000)
        self.teacher = f"http://127.0.0.1:{port}"
        self.settings |= {
            "BASE_URL": "http://teacher.chaos/v1",
            "API_KEY_ENV": "CHAOS_KEY",
            "STYLES_DIR": "styles",
            "MAX_CONCURRENT_CALLS": str(CALLS),
            "VISIBILITY_TIMEOUT": str(5 * VISIBILITY),  # a message that comes again while it is worked on is paid twice
            "ANSWER_TIMEOUT": "3",
        }
        (self.folder / "styles").mkdir()
        (self.folder / "styles" / f"{style}.yaml").write_text(STYLE_FILE)

        def work() -> None:
            Endpoint(port=port, delay=0.05, fail=fail, kinds=FAILURES, seed=seed).serve_forever()

        self.endpoint = self.fork("endpoint", work)

    def tally(self) -> dict[str, dict[str, int]]:
        """What the endpoint has sent."""
        with urllib.request.urlopen(self.teacher, timeout=10) as answer:
            return json.load(answer)

    # ---- the broker

    def start_broker(self) -> None:
        folder = self.folder / "broker"
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "broker.conf"
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {folder}\n"
            'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
        )
        self.broker = start_child("broker", [find_server(), str(settings)], folder, os.environ)
        client = self.client()
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.RedisError:
                time.sleep(0.05)
        raise RuntimeError(self.broker.last_words())

    def stop_broker(self, how: signal.Signals) -> None:
        self.broker.process.send_signal(how)
        self.broker.process.wait(20)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    # ---- workers

    def fork(self, name: str, work: Callable[[], None]) -> int:
        """Run ``work`` in a new process with this cluster's settings; gives its id."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.setsid()
            sink = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            # A request's hash holds the endpoint's name: it must not change with the port, so the port is a proxy's.
            os.environ |= {"CHAOS_KEY": "sk-of-chaos", "HTTP_PROXY": self.teacher}
            os.environ.update({f"FACTORY_{key}": value for key, value in self.settings.items()})
            os.chdir(self.folder)
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def start_worker(self, name: str, sabotage: Callable[[], None] | None = None) -> None:
        def work() -> None:
            from factory.celery import app

            slow_down(self.rng.random())
            if sabotage:
                sabotage()
            options = ["-Q", QUEUES[name], "-n", f"{name}-{os.getpid()}@%h", "--without-mingle", "--without-gossip"]
            app.worker_main(["worker", *options])

        self.workers[name] = self.fork(name, work)

    def kill_worker(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        pid = self.workers.pop(name, None)
        if pid is None:
            return
        os.kill(pid, how)
        self.reap(pid)

    def reap(self, pid: int, seconds: float = 30) -> int:
        """Wait for a process of ours; kill it if it takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def revive(self) -> None:
        """Start again what died, as an orchestrator would."""
        for name, pid in list(self.workers.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.start_worker(name)

    # ---- the run

    @property
    def store(self) -> Store:
        return Store(self.store_url)

    def enqueue(self, styles: dict[str, int], *, die_after: int | None = None) -> int:
        """Submit a run of some styles with so many pairs; gives the process that does it."""

        def work() -> None:
            from factory.config import load_settings
            from factory.planning.plan import plan_run
            from workers.flow import chord
            from workers.flow import submit as flow

            if die_after is not None:
                sent = chord.send_member
                count = [0]

                def send(*args: object, **named: object) -> None:
                    if count[0] == die_after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count[0] += 1
                    sent(*args, **named)

                chord.send_member = send
            settings = load_settings().model_copy(update={"styles": list(styles)})
            flow.submit(plan_run(settings, self.store, self.folder, limit=max(styles.values())), self.store)

        return self.fork("enqueue", work)

    def resume(self) -> None:
        def work() -> None:
            from workers.flow import submit as flow

            flow.resume(self.ledger())

        self.reap(self.fork("resume", work), 60)

    def ledger(self) -> Ledger:
        (run,) = list_runs(self.store)
        return Ledger(self.store, run)

    def ended(self, styles: dict[str, int]) -> bool:
        try:
            ledger = self.ledger()
            return all(ledger.of(style).result is not None for style in styles)
        except ValueError:
            return False

    def failed(self, styles: dict[str, int]) -> bool:
        """Whether a style ended without a vector."""
        results = [self.ledger().of(style).result for style in styles]
        return any(result is None or result.state != "done" for result in results)

    def mend(self) -> None:
        """Start the gpu workers anew, with nothing in their way."""
        for name in ("gpu1", "gpu2"):
            self.kill_worker(name, signal.SIGTERM)
            self.start_worker(name)

    def stop(self) -> None:
        for name in list(self.workers):
            try:
                self.kill_worker(name, signal.SIGKILL)
            except (ProcessLookupError, ChildProcessError):
                pass
        if self.endpoint:
            os.kill(self.endpoint, signal.SIGKILL)
            self.reap(self.endpoint)
        if self.broker and not self.broker.died:
            self.stop_broker(signal.SIGKILL)


def slow_down(seed: float) -> None:
    """Make extraction and learning take a while, so that faults meet them at work."""
    import workers.gpu

    rng = random.Random(seed)

    def slowed(step: Callable[..., None]) -> Callable[..., None]:
        def slow(*args: object) -> None:
            time.sleep(rng.uniform(0.05, 0.35))
            step(*args)

        return slow

    workers.gpu.extract_step = slowed(workers.gpu.extract_step)
    workers.gpu.learn_part_step = slowed(workers.gpu.learn_part_step)
