"""Checks of what a cluster stands on: broker, workers, device, disk, store, key. Each says what to do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import redis

from factory.cluster.broker import connect
from factory.config import Settings
from factory.errors import FactoryError, StoreError
from factory.store import Store

State = Literal["good", "warning", "bad"]
OLDEST_BROKER = (6, 2)
SKEW = 5.0  # s
FREE_GB = 20.0  # a 7B model in bfloat16, and room


@dataclass(frozen=True)
class Finding:
    """What one check found. ``area`` is what is checked; ``advice`` is empty where all is well."""

    area: str
    state: State
    found: str
    advice: str = ""


def check_broker(url: str) -> list[Finding]:
    """Whether the broker answers, keeps what it is given, and never throws a message away."""
    client: Any = connect(url)
    try:
        before = time.time()
        info = client.info()
        seconds, microseconds = client.time()
    except (redis.RedisError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        advice = "start Valkey or Redis there, or set FACTORY_BROKER_URL; 'svf generate' needs neither"
        return [Finding("broker", "bad", f"no answer: {reason}", advice)]
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_BROKER
    findings = [
        Finding("broker", "warning" if old else "good", f"{name} {version}", "use 6.2 or newer" if old else ""),
        _persistence(keeps_log=bool(info.get("aof_enabled"))),
        _eviction(client),
        _memory(int(info["used_memory"]), int(info.get("maxmemory", 0))),
    ]
    skew = abs(seconds + microseconds / 1e6 - (before + time.time()) / 2)
    late = skew > SKEW
    advice = "set both clocks (NTP): retries and timeouts count from them" if late else ""
    findings.append(Finding("clock", "warning" if late else "good", f"{skew:.1f} s from the broker's", advice))
    return findings


def _persistence(*, keeps_log: bool) -> Finding:
    if keeps_log:
        return Finding("persistence", "good", "append-only file")
    advice = "set 'appendonly yes': the guard rebuilds a run after a loss, but that takes time"
    return Finding("persistence", "warning", "no append-only file", advice)


def _eviction(client: Any) -> Finding:
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown")
    except redis.RedisError:
        return Finding("eviction", "warning", "may not be asked", "make sure that maxmemory-policy is noeviction")
    if policy == "noeviction":
        return Finding("eviction", "good", policy)
    return Finding("eviction", "bad", policy, "set maxmemory-policy to noeviction: any other throws messages away")


def _memory(used: int, most: int) -> Finding:
    """Bytes that the broker uses, of ``most`` (0: no limit)."""
    found = f"{used / 2**20:.0f} MiB used" + (f" of {most / 2**20:.0f}" if most else ", no limit")
    full = bool(most) and used > 0.9 * most
    return Finding("broker memory", "bad" if full else "good", found, "raise maxmemory" if full else "")


def check_workers(ping: Callable[[], dict[str, list[str]]], needed: tuple[str, ...]) -> list[Finding]:
    """Which queues have a worker. ``ping`` gives the queues of each worker that answers."""
    served: dict[str, int] = {}
    for queues in ping().values():
        for queue in queues:
            served[queue] = served.get(queue, 0) + 1
    findings = []
    for queue in needed:
        count = served.pop(queue, 0)
        advice = "" if count else f"start one: celery -A factory worker -Q {queue}"
        missing: State = "warning" if queue == "teacher" else "bad"  # runs on datasets need no teacher
        findings.append(Finding(f"queue {queue}", "good" if count else missing, _count(count), advice))
    return findings + [Finding(f"queue {queue}", "good", _count(count)) for queue, count in sorted(served.items())]


def _count(workers: int) -> str:
    return f"{workers or 'no'} worker{'s' * (workers != 1)}"


def check_store(store: Store) -> Finding:
    """Whether the store takes a file, gives it back and removes it."""
    key, content = f"doctor/{os.getpid()}", os.urandom(64)
    try:
        store.write(key, content)
        same = store.read(key) == content
        store.delete(key)
    except (StoreError, OSError) as error:
        return Finding("store", "bad", str(error), "every machine needs the same store, with the right to write")
    if not same:
        return Finding("store", "bad", f"{store.url} gives back something else", "use a store with strong consistency")
    return Finding("store", "good", f"{store.url} is written and read")


def check_shared_store(elsewhere: Callable[[Store], Mapping[str, str]], store: Store) -> list[Finding]:
    """Whether the workers that are up see the store; nothing where it cannot be written here either.

    ``elsewhere`` gives those that do not, each with its own store.
    """
    try:
        found = elsewhere(store)
    except (StoreError, OSError):  # check_store says so
        return []
    advice = f"start it anew with FACTORY_STORE={store.url}, or with what leads there from its machine"
    return [
        Finding(f"store of {worker}", "bad", f"its store is {place}, which does not hold what is in this one", advice)
        for worker, place in found.items()
    ]


def check_disk(folder: Path) -> Finding:
    """Room for models and artifacts."""
    free = shutil.disk_usage(folder).free / 1e9
    advice = "" if free > FREE_GB else f"a 7B model takes about 15 GB: free some space of {folder.resolve()}"
    return Finding("disk", "good" if free > FREE_GB else "warning", f"{free:.0f} GB free", advice)


def check_device(settings: Settings) -> Finding:
    """Whether the configured device is here. Only gpu workers need one."""
    try:
        from factory.target.loading import choose_device
    except ImportError:
        advice = "gpu and reduce workers need pip install '.[target]'; a teacher worker does not"
        return Finding("device", "warning", "no torch here", advice)
    try:
        return Finding("device", "good", choose_device(settings.device))
    except FactoryError as error:
        return Finding("device", "bad", str(error), "set device: auto")


def check_key(settings: Settings) -> Finding:
    """Whether a teacher could be asked. The key itself is shown to nobody."""
    from factory.teacher.endpoint import OPENAI_KEY, find_key

    if find_key(settings.base_url, settings.api_key_env) is not None:
        return Finding("key", "good", "there is one" if settings.base_url is None else f"for {settings.base_url}")
    variable = settings.api_key_env or OPENAI_KEY
    return Finding("key", "warning", f"{variable} is not set", f"set {variable} to write pairs; datasets need none")
