"""SIGKILL of ``svf generate``, which has its broker and workers as children: nothing may run on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.cluster import ROOT, Cluster

LONGEST = 240.0  # s of one run on a busy machine
GRACE = 10.0  # s in which orphans notice
COMMAND = [sys.executable, "-c", "from factory.cli import main; main()", "generate", "--output", "."]


def generate_twice(cluster: Cluster, style: str, pairs: int) -> tuple[list[str], str]:
    """Kill ``svf generate`` at a seeded moment, then run it again in the same folder.

    Gives what was left of the first (processes, port, lock), and the SHA-256 of the second's vector.
    """
    words = [*COMMAND, "--styles", style, "--limit", str(pairs)]
    first = start(cluster, words)
    await_moment(cluster, first)
    ports = broker_ports(cluster)
    first.send_signal(signal.SIGKILL)
    first.wait()
    left = what_is_left(cluster, ports)
    second = start(cluster, words)
    if second.wait(LONGEST):
        raise RuntimeError((cluster.folder / "generate.log").read_text()[-500:])
    vector = cluster.folder / "steering_vectors" / f"{style}.pt"
    return left + what_is_left(cluster, []), hashlib.sha256(vector.read_bytes()).hexdigest()


def start(cluster: Cluster, words: list[str]) -> subprocess.Popen[bytes]:
    own = {f"FACTORY_{key}": value for key, value in cluster.settings.items() if key != "BROKER_URL"}
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    with (cluster.folder / "generate.log").open("ab") as sink:
        return subprocess.Popen(words, cwd=cluster.folder, env=environment, stdout=sink, stderr=sink)


def await_moment(cluster: Cluster, run: subprocess.Popen[bytes]) -> None:
    """While it starts; when it has workers; or after some batches of its 12, and then at any moment."""
    batches = cluster.rng.choice([0, 1, 4, 8])
    moments = [lambda: bool(broker_ports(cluster)), lambda: len(batches_in(cluster)) >= batches]
    reached = cluster.rng.choice([lambda: True, *moments, moments[1]])
    deadline = time.monotonic() + LONGEST
    while not reached() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(cluster.rng.uniform(0, 2))


def batches_in(cluster: Cluster) -> list[Path]:
    return list((cluster.folder / "store" / "batches").glob("*.safetensors"))


def processes_of(cluster: Cluster) -> dict[int, str]:
    """The environments of all processes of the run: its store, which is named there, is no other's."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                if f"FACTORY_STORE={cluster.store_url}\0" in environment and "State:\tZ" not in (
                    (entry / "status").read_text()
                ):
                    found[int(entry.name)] = environment
            except OSError:
                pass  # it has just ended
    return found


def broker_ports(cluster: Cluster) -> list[int]:
    """The port of the private broker, which its workers know."""
    known = "".join(processes_of(cluster).values())
    return sorted({int(port) for port in re.findall(r"FACTORY_BROKER_URL=redis://:[^@]*@127\.0\.0\.1:(\d+)/", known)})


def what_is_left(cluster: Cluster, ports: list[int]) -> list[str]:
    """What still runs, listens or is held, once orphans had time to notice."""
    deadline = time.monotonic() + GRACE
    while (left := still_there(cluster, ports)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def still_there(cluster: Cluster, ports: list[int]) -> list[str]:
    left = [f"process {pid}" for pid in processes_of(cluster)]
    for port in ports:
        with socket.socket() as probe:
            left += [f"port {port}"] if probe.connect_ex(("127.0.0.1", port)) == 0 else []
    with (cluster.folder / ".svf-lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left.append("lock of the folder")
    return left
