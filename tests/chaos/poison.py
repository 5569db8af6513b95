"""One batch kills its worker each time: ``python -m tests.chaos.poison`` says what became of the run."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.__main__ import STYLES, make_target, preload
from tests.chaos.cluster import Cluster


def poison(deaths: Path):
    """Make batch 2 deadly."""

    def sabotage() -> None:
        import workers.gpu

        step = workers.gpu.extract_step

        def deadly(ledger: object, style: str, number: int, settings: object) -> None:
            if number == 2:
                with deaths.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            step(ledger, style, number, settings)

        workers.gpu.extract_step = deadly

    return sabotage


def main() -> int:
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
        try:
            for style in STYLES:
                cluster.write_dataset(style)
            cluster.start_broker()
            cluster.start_worker("reduce")
            cluster.start_worker("gpu1", poison(deaths))
            cluster.reap(cluster.enqueue(STYLES))
            deadline = time.monotonic() + 150
            while not cluster.ended(STYLES) and time.monotonic() < deadline:
                if os.waitpid(cluster.workers["gpu1"], os.WNOHANG)[0]:
                    cluster.start_worker("gpu1", poison(deaths))
                time.sleep(0.2)
            (style,) = STYLES
            ledger = cluster.ledger()
            result, progress = ledger.result(style) or {"state": "hangs"}, ledger.progress(style)
            from factory.vector.vector import SteeringVector

            vector = ledger.store.read(ledger.vector_key(style)) if result["state"] == "done" else None
            if vector:
                (folder / "vector.pt").write_bytes(vector)
            failed = SteeringVector.load(folder / "vector.pt").metadata["pairs_failed"] if vector else None
        finally:
            cluster.stop()
        found = {
            "state": result["state"],
            "deaths": len(deaths.read_text()),
            "extracted": progress.extracted,
            "reasons": progress.reasons,
            "pairs_failed": failed,
        }
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
