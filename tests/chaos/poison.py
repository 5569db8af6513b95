"""One task kills its worker each time: ``python -m tests.chaos.poison KIND`` says what became of the run.

KIND: ``batch``, or ``evaluation`` or ``learning`` for a part of that.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.__main__ import STYLES, make_target, preload
from tests.chaos.cluster import Cluster

STEPS = {"batch": "extract_step", "evaluation": "evaluate_step", "learning": "learn_part_step"}  # of workers.gpu


def poison(deaths: Path, step: str) -> Callable[[], None]:
    """Make number 2 of ``step`` deadly."""

    def sabotage() -> None:
        import workers.gpu

        plain = getattr(workers.gpu, step)

        def deadly(page: object, number: int, *rest: object, **named: object) -> None:
            if number == 2:
                with deaths.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            plain(page, number, *rest, **named)

        setattr(workers.gpu, step, deadly)

    return sabotage


def main() -> int:
    kind = sys.argv[1]
    preload()
    with tempfile.TemporaryDirectory(prefix="svf-poison-", ignore_cleanup_errors=True) as base:
        target, folder = Path(base) / "target", Path(base) / "run"
        folder.mkdir()
        if (pid := os.fork()) == 0:
            make_target(target)
            os._exit(0)
        os.waitpid(pid, 0)
        cluster = Cluster(folder, target, random.Random(0))
        deaths = folder / "deaths"
        deadly = poison(deaths, STEPS[kind])
        if kind == "evaluation":
            cluster.evaluate()
        if kind == "learning":
            cluster.learn()
        try:
            for style in STYLES:
                cluster.write_dataset(style)
            cluster.start_broker()
            cluster.start_worker("reduce")
            cluster.start_worker("gpu1", deadly)
            cluster.reap(cluster.enqueue(STYLES))
            deadline = time.monotonic() + 150
            while not cluster.ended(STYLES) and time.monotonic() < deadline:
                if os.waitpid(cluster.workers["gpu1"], os.WNOHANG)[0]:
                    cluster.start_worker("gpu1", deadly)
                time.sleep(0.2)
            (style,) = STYLES
            ledger = cluster.ledger()
            from factory.config import OutputSettings
            from factory.run.export import export_style
            from factory.run.progress import progress_of
            from factory.vector.vector import SteeringVector

            result, progress = ledger.of(style).result, progress_of(ledger.of(style))
            state = result.state if result else "hangs"
            failed = None
            if state == "done":
                exported = export_style(ledger.of(style), folder / "out", OutputSettings())
                failed = SteeringVector.load(exported).metadata["pairs_failed"]
        finally:
            cluster.stop()
        found = {
            "state": state,
            "deaths": len(deaths.read_text()),
            "extracted": progress.extracted,
            "reasons": progress.reasons,
            "pairs_failed": failed,
            "message": (result.message or None) if result else None,
        }
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
