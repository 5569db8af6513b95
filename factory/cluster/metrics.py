"""Figures of the cluster in Prometheus' text format, read from the broker and the ledgers.

Flower counts tasks; it knows neither how deep the queues are nor what runs are for. Everything
here is read when it is asked for, so it is right from anywhere: ``svf metrics`` beside the broker,
or on any machine that reaches broker and store. A run's counters are read from its ledger, whose
entries never change and are read once.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from factory.cluster.broker import UNACKED, UNACKED_INDEX, connect, queue_depth, queue_names
from factory.counters import REPAIRS, TROUBLE
from factory.errors import StoreError
from factory.run.ledger import Ledger, open_runs
from factory.run.page import Page
from factory.run.progress import progress_of
from factory.store import Store

# Kinds of what is counted: each is shown from 0 on, or its first event would be no increase.
REPAIR_KINDS = ("sent_again", "body")
TROUBLE_KINDS = ("rate_limited", "error")


class ClusterFigures(Collector):
    """Collects the figures each time a scrape asks for them."""

    def __init__(self, broker_url: str, store: Store) -> None:
        self.client: Any = connect(broker_url)
        self.store = store
        self._ledgers: dict[str, Ledger] = {}

    def collect(self) -> Iterator[Metric]:
        """The figures of now. What cannot be reached is said by ``svf_broker_up`` and ``svf_store_up``."""
        up = GaugeMetricFamily("svf_broker_up", "1 if the broker answers")
        try:
            yield from list(self._broker())
            up.add_metric([], 1)
        except (redis.RedisError, OSError):
            up.add_metric([], 0)
        yield up
        up = GaugeMetricFamily("svf_store_up", "1 if the store answers")
        try:
            yield from list(self._runs())
            up.add_metric([], 1)
        except (StoreError, OSError):
            up.add_metric([], 0)
        yield up
        yield from gpu_figures()

    def _broker(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("svf_queue_messages", "Messages that wait", labels=["queue"])
        age = GaugeMetricFamily("svf_queue_oldest_seconds", "Age of the oldest message that waits", labels=["queue"])
        for depth in (queue_depth(self.client, name) for name in queue_names(self.client)):
            waiting.add_metric([depth.name], depth.waiting)
            age.add_metric([depth.name], time.time() - depth.oldest_sent_at if depth.oldest_sent_at else 0)
        yield waiting
        yield age
        yield _gauge("svf_unacked_messages", "Messages in the hands of workers", self.client.hlen(UNACKED))
        oldest = self.client.zrange(UNACKED_INDEX, 0, 0, withscores=True)
        held = time.time() - oldest[0][1] if oldest else 0
        yield _gauge("svf_unacked_oldest_seconds", "How long the oldest of them is held", held)
        yield _gauge("svf_broker_memory_bytes", "Memory of the broker", self.client.info("memory")["used_memory"])
        repairs, trouble = self._counts(REPAIRS, REPAIR_KINDS), self._counts(TROUBLE, TROUBLE_KINDS)
        yield _counter("svf_guard_repairs", "What the guard repaired", repairs)
        yield _counter("svf_teacher_trouble", "Times that the teacher set a batch back", trouble)

    def _counts(self, key: str, kinds: Sequence[str]) -> dict[str, int]:
        counted = {kind.decode(): int(count) for kind, count in self.client.hgetall(key).items()}
        return dict.fromkeys(kinds, 0) | counted

    def _runs(self) -> Iterator[Metric]:
        """Figures of runs that have not ended: those of old runs would be series for ever."""
        self._ledgers = {ledger.run_id: self._ledgers.get(ledger.run_id, ledger) for ledger in open_runs(self.store)}
        pairs = GaugeMetricFamily("svf_pairs", "Pairs by how far they are", labels=["run", "style", "state"])
        cost = GaugeMetricFamily("svf_cost_usd", "What the teacher has cost", labels=["run", "style"])
        about_tokens = "Tokens of the calls that were paid for the batches written so far"
        tokens = GaugeMetricFamily("svf_teacher_tokens", about_tokens, labels=["run", "style", "kind"])
        peak = GaugeMetricFamily("svf_target_peak_bytes", "Most memory that a batch took", labels=["run", "style"])
        open_chords = 0
        for name, ledger in self._ledgers.items():
            for page in ledger.pages:
                style, progress = page.name, progress_of(page)
                for state in ("pairs", "written", "extracted", "failed"):
                    pairs.add_metric([name, style, "asked" if state == "pairs" else state], getattr(progress, state))
                cost.add_metric([name, style], progress.spent_usd)
                for kind, count in _tokens_of(page).items():
                    tokens.add_metric([name, style, kind], count)
                peak.add_metric([name, style], progress.peak_memory_mib * 2**20)
                open_chords += progress.state in ("waiting", "running")
        yield from (pairs, cost, tokens, peak)
        yield _gauge("svf_open_runs", "Runs that have not ended", len(self._ledgers))
        yield _gauge("svf_open_chords", "Styles whose chord has not ended", open_chords)


def _tokens_of(page: Page) -> dict[str, int]:
    """Tokens that the teacher read and wrote for a style, by calls that this run paid."""
    paid = [entry.paid_tokens for entry in page.all_written()]
    return {kind: sum(tokens.get(kind, 0) for tokens in paid) for kind in ("input", "output")}


def _counter(name: str, about: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=["kind"])
    for kind, count in counts.items():
        family.add_metric([kind], count)
    return family


def _gauge(name: str, about: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, about)
    family.add_metric([], value)
    return family


def gpu_figures() -> Iterator[Metric]:
    """Memory and load of this machine's NVIDIA devices; nothing where there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = "--query-gpu=index,memory.used,memory.total,utilization.gpu"
    try:
        asked = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return
    used = GaugeMetricFamily("svf_gpu_memory_bytes", "GPU memory in use", labels=["device"])
    total = GaugeMetricFamily("svf_gpu_memory_total_bytes", "GPU memory there is", labels=["device"])
    load = GaugeMetricFamily("svf_gpu_utilization_percent", "Share of time the GPU computes", labels=["device"])
    for line in asked.stdout.splitlines():
        index, mib_used, mib_total, percent = (word.strip() for word in line.split(","))
        used.add_metric([index], float(mib_used) * 2**20)
        total.add_metric([index], float(mib_total) * 2**20)
        load.add_metric([index], float(percent))
    yield used
    yield total
    yield load


def registry(broker_url: str, store: Store) -> CollectorRegistry:
    """A registry that a Prometheus server can be pointed at."""
    made = CollectorRegistry()
    made.register(ClusterFigures(broker_url, store))
    return made


def metrics_text(broker_url: str, store: Store) -> str:
    """The figures of now as text."""
    return generate_latest(registry(broker_url, store)).decode()
