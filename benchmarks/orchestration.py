"""What the queue costs: ``python benchmarks/orchestration.py --pairs 1000 --pairs 10000 [--json]``.

The target model is replaced by one that returns fixed differences at once, so that all that is
measured is planning, messages, the ledger, the guard and the reduction. The peer, in the same run on
the same broker with the same settings, is Celery's own chord of tasks that do nothing: one of
as many tasks as there are batches, and one of a task a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPE = (8, 4, 128)  # layers, KV heads, head_dim of the 7B target with layers 8 to 15
STYLE = "step_by_step_reasoning"


def make_cluster(folder: Path):
    import random

    from tests.chaos.cluster import Cluster

    cluster = Cluster(folder, Path("fixed"), random.Random(0))
    for key in ("VISIBILITY_TIMEOUT", "GUARD_SECONDS", "EXTRACTION_CONFIG__BATCH_SIZE"):
        del cluster.settings[key]  # as delivered
    cluster.start_broker()
    return cluster


def fixed_differences() -> None:
    """Replace the target model: every batch finds the same artifact."""
    import torch

    import workers.gpu
    from factory.extraction.extract import Differences
    from factory.run.artifacts import put_differences
    from factory.run.entries import Extracted

    key = "batches/fixed.safetensors"
    known: set[str] = set()
    config = {"target_layers": list(range(8, 16)), "dtype": "float32", "model_revision": "fixed", "recipe": "fewshot"}

    def extract(page, number, settings) -> None:
        if page.extracted(number):
            return
        if page.store.url not in known:
            tensor = torch.arange(16 * 8 * 4 * 128, dtype=torch.float32).reshape(16, *SHAPE) / 1000
            put_differences(page.store, key, Differences([f"p{n}" for n in range(16)], tensor, tensor.clone()))
            known.add(page.store.url)
        entry = Extracted(key=key, n_pairs=page.batches[number].n_pairs, reasons={}, config=config)
        page.record("extracted", number, entry)

    workers.gpu.extract_step = extract


def start(cluster, name: str, queues: str) -> int:
    def work() -> None:
        from celery import shared_task

        from factory.celery import app

        fixed_differences()
        register_noop(shared_task)
        app.worker_main(["worker", "-Q", queues, "-n", f"{name}@%h", "--without-mingle", "--without-gossip"])

    return cluster.fork(name, work)


def register_noop(shared_task: Callable) -> object:
    @shared_task(name="noop", queue="gpu")
    def noop() -> None:
        """Do nothing."""

    @shared_task(name="noop_end", queue="reduce")
    def noop_end(results: list) -> None:
        """Say that it is done."""
        Path("noop.done").write_text(str(len(results)))

    return noop


def write_pairs(folder: Path, count: int) -> None:
    from factory.pairs.dataset import format_dataset
    from factory.pairs.pair import ContrastivePair

    text = "A sentence that says something about how this is reasoned. " * 8
    pairs = [ContrastivePair(f"Question {n}?", f"Step 1: {n}. {text}", f"{n}. {text}", STYLE) for n in range(count)]
    path = folder / "datasets" / f"{STYLE}_pairs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_dataset(pairs, {"style_name": STYLE}))


def run_factory(cluster, count: int) -> dict[str, float]:
    """A run of ``count`` pairs; seconds of its parts."""
    cluster.reap(
        cluster.fork("write", lambda: write_pairs(cluster.folder, count)), 300
    )  # what grows here, forks inherit

    def enqueue() -> None:
        from factory.config import load_settings
        from factory.planning.plan import plan_run
        from workers.flow.submit import submit

        settings = load_settings().model_copy(update={"styles": [STYLE]})
        at = [time.perf_counter(), time.process_time()]
        plan = plan_run(settings, cluster.store, cluster.folder)
        at.append(time.perf_counter())
        submit(plan, cluster.store)
        figures = {"plan_s": at[2] - at[0], "submit_s": time.perf_counter() - at[2]}
        figures["enqueue_cpu_s"] = time.process_time() - at[1]
        Path("enqueue.json").write_text(json.dumps(figures))

    started = time.perf_counter()
    if cluster.reap(cluster.fork("enqueue", enqueue), 900) != 0:
        sys.exit((cluster.folder / "enqueue.log").read_text())
    figures = json.loads((cluster.folder / "enqueue.json").read_text())
    while not cluster.ended({STYLE: count}):
        time.sleep(0.2)
    figures["total_s"] = time.perf_counter() - started
    from factory.run.progress import progress_of

    ledger = cluster.ledger()
    result = ledger.of(STYLE).result
    if result.state != "done" or progress_of(ledger.of(STYLE)).extracted != count:
        sys.exit(f"the run is not whole: {result}")
    files = Path(cluster.store_url) / ledger.run_id / STYLE
    last = max(path.stat().st_mtime for path in files.glob("extracted-*.json"))
    figures["last_header_to_vector_s"] = (files / "result.json").stat().st_mtime - last
    figures["batches"] = ledger.spec.style_run(STYLE).n_batches
    return figures


def run_noop(cluster, count: int) -> dict[str, float]:
    """Celery's plain chord of ``count`` tasks that do nothing."""
    done = cluster.folder / "noop.done"
    done.unlink(missing_ok=True)

    def enqueue() -> None:
        from celery import chord, shared_task, signature

        from factory.celery import app

        noop = register_noop(shared_task)
        at = [time.perf_counter(), time.process_time()]
        chord([noop.si() for _ in range(count)], signature("noop_end"), app=app).apply_async()
        figures = {"submit_s": time.perf_counter() - at[0], "enqueue_cpu_s": time.process_time() - at[1]}
        Path("noop.json").write_text(json.dumps(figures))

    started = time.perf_counter()
    if cluster.reap(cluster.fork("noop", enqueue), 900) != 0:
        sys.exit((cluster.folder / "noop.log").read_text())
    while not done.exists():
        time.sleep(0.05)
    figures = json.loads((cluster.folder / "noop.json").read_text())
    return figures | {"total_s": time.perf_counter() - started}


def with_workers(work: Callable, count: int) -> dict[str, float]:
    """Do ``work`` on a new cluster; adds what its workers and its broker took."""
    with tempfile.TemporaryDirectory(prefix="svf-orchestration-", ignore_cleanup_errors=True) as folder:
        cluster = make_cluster(Path(folder))
        try:
            for name in ("gpu", "reduce"):
                cluster.workers[name] = start(cluster, name, name)
            time.sleep(4)
            figures = measured(cluster, work, count)
        finally:
            cluster.stop()
    spent = sum(figures[name] for name in ("enqueue_cpu_s", "gpu_cpu_s", "reduce_cpu_s"))
    figures["cpu_ms_a_pair"] = 1000 * spent / count
    figures["broker_cpu_ms_a_pair"] = 1000 * figures["broker_cpu_s"] / count
    return figures


def measured(cluster, work: Callable, count: int) -> dict[str, float]:
    client = cluster.client()
    pids = cluster.workers | {"broker": broker_pid(cluster)}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    memory = int(client.info("memory")["used_memory"])
    figures = work(cluster, count)
    figures["broker_peak_mb"] = (int(client.info("memory")["used_memory_peak"]) - memory) / 1e6
    figures |= {f"{name}_cpu_s": cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    return figures | {"reduce_peak_mb": peak_mb(pids["reduce"])}


def broker_pid(cluster) -> int:
    return cluster.broker.process.pid


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, action="append", help="pairs of a run; repeatable")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.chaos.__main__ import preload

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    preload()
    rows = []
    for count in options.pairs or [1000, 10_000]:
        batches = -(-count // 16)
        rows.append({"what": "factory", "pairs": count} | with_workers(run_factory, count))
        rows.append({"what": f"no-op chord, {batches} tasks", "pairs": count} | with_noop(count, batches))
        if count <= 10_000:
            rows.append({"what": f"no-op chord, {count} tasks", "pairs": count} | with_noop(count, count))
        for row in rows[-3:]:
            print(json.dumps(row), file=sys.stderr, flush=True)
    about = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "max_rss_kb": resource.getrusage(resource.RUSAGE_SELF)[2],
    }
    print(json.dumps({"machine": about, "rows": rows}) if options.json else table(rows))
    return 0


def with_noop(count: int, tasks: int) -> dict[str, float]:
    figures = with_workers(run_noop, tasks)
    share = tasks / count  # figures are of a pair, not of a task
    return figures | {name: figures[name] * share for name in ("cpu_ms_a_pair", "broker_cpu_ms_a_pair")}


def table(rows: list[dict]) -> str:
    names = ["what", "pairs", "cpu_ms_a_pair", "broker_cpu_ms_a_pair", "submit_s", "total_s", "last_header_to_vector_s"]
    names += ["broker_peak_mb", "reduce_peak_mb"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
