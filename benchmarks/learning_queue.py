"""What the queue adds to a round of learning: ``python benchmarks/learning_queue.py [--workers 1 2 4] [--json]``.

The target model is replaced by one that takes a fixed time per part and sleeps for it, so that workers
share no core. All else is real: broker, chords, ledger, store, the step. A round's bound is the time of
its parts alone, dealt to the workers; what it takes above that is the queue's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from math import ceil
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.orchestration import SHAPE, STYLE, fixed_differences, make_cluster, write_pairs

PARTS = 4  # per round
PAIRS = 32


def fixed_parts(seconds: float) -> None:
    """Replace the target model: every part takes ``seconds``, and finds the same gradient."""
    import torch

    import workers.gpu
    from factory.learning.state import PartSum
    from factory.run.entries import Gradient
    from factory.steps import learn

    def read(page, place, settings) -> None:
        number, at = divmod(place, learn.PLACES)
        if place not in learn.missing_places(page, number):
            return
        part = learn.parts_of(page, number)[at]
        time.sleep(seconds)
        gradient = None if part.validates else torch.ones(2, *SHAPE)
        key = f"gradients/fixed-{place}.safetensors"
        learn._put_sum(page, key, PartSum(1.0, len(part.pairs), gradient))
        page.record("gradient", place, Gradient(key=key, n_pairs=len(part.pairs), seconds=seconds, peak_memory_mib=0))

    workers.gpu.learn_part_step = read


def start(cluster, name: str, queue: str, seconds: float) -> int:
    def work() -> None:
        from factory.celery import app

        fixed_differences()
        fixed_parts(seconds)
        app.worker_main(["worker", "-Q", queue, "-n", f"{name}@%h", "--without-mingle", "--without-gossip"])

    return cluster.fork(name, work)


def enqueue(cluster, rounds: int) -> None:
    """Send a run that learns ``rounds`` rounds of PARTS parts, and validates nothing."""
    learning = {"rounds": rounds, "pairs_per_round": PARTS, "pairs_per_part": 1, "validation_share": 0}
    cluster.settings |= {f"LEARNING__{name.upper()}": str(value) for name, value in learning.items()}
    cluster.reap(cluster.fork("write", lambda: write_pairs(cluster.folder, PAIRS)), 60)

    def send() -> None:
        from factory.config import load_settings
        from factory.planning.plan import plan_run
        from workers.flow.submit import submit

        submit(
            plan_run(load_settings().model_copy(update={"styles": [STYLE]}), cluster.store, cluster.folder),
            cluster.store,
        )

    if cluster.reap(cluster.fork("enqueue", send), 120) != 0:
        sys.exit((cluster.folder / "enqueue.log").read_text())


def measure(n_workers: int, rounds: int, seconds: float) -> dict[str, float]:
    """Seconds per round with so many gpu workers: from the first round's entry to the last's."""
    with tempfile.TemporaryDirectory(prefix="svf-rounds-", ignore_cleanup_errors=True) as folder:
        cluster = make_cluster(Path(folder))
        try:
            cluster.workers["reduce"] = start(cluster, "reduce", "reduce", seconds)
            for number in range(n_workers):
                cluster.workers[f"gpu{number}"] = start(cluster, f"gpu{number}", "gpu", seconds)
            time.sleep(4)
            enqueue(cluster, rounds)
            while not cluster.ended({STYLE: PAIRS}):
                time.sleep(0.2)
            took = seconds_of_rounds(cluster, rounds)
        finally:
            cluster.stop()
    bound = ceil(PARTS / n_workers) * seconds
    return {"workers": n_workers, "round_s": took, "bound_s": bound, "queue_s": took - bound, "ratio": took / bound}


def seconds_of_rounds(cluster, rounds: int) -> float:
    """From when the first round was taken to when the last was, per round."""
    ledger = cluster.ledger()
    result = ledger.of(STYLE).result
    if result.state != "done" or not ledger.of(STYLE).learned():
        sys.exit(f"the run did not learn: {result}")
    files = Path(cluster.store_url) / ledger.run_id / STYLE
    taken = [path.stat().st_mtime for path in sorted(files.glob("round-*.json"))]
    return (max(taken[:rounds]) - min(taken)) / (rounds - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a part takes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from tests.chaos.__main__ import preload

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    preload()
    rows = [measure(count, options.rounds, options.seconds) for count in options.workers]
    about = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "parts": PARTS, "part_s": options.seconds}
    print(json.dumps({"machine": about, "rows": rows}) if options.json else table(rows))
    return 0


def table(rows: list[dict[str, float]]) -> str:
    """A row per number of workers."""
    lines = ["workers  s per round  bound  added by the queue  times the bound"]
    lines += [
        "{workers:7d}  {round_s:11.3f}  {bound_s:5.2f}  {queue_s:18.3f}  {ratio:15.2f}".format(**row) for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
