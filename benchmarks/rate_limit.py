"""Does a cluster use its allowance, and never more? Two teacher workers against a server that counts.

    python benchmarks/rate_limit.py [--calls 300] [--per-minute 120] [--json]

The server answers 429 as soon as any 60 seconds hold more calls than allowed. Everything is real
but the model: broker, worker processes, HTTP. Prints the answers of 429 and the share of the
allowance that was used after the first minute. Exit status 1: 429s, or less than 95 % used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory.cluster.embedded import running_broker, running_crew
from factory.config import Settings
from factory.planning.plan import plan_run
from factory.store import Store
from tests.endpoint import Endpoint, running_endpoint

STYLE = """\
description: Numbered steps.
positive_prompt: "{question} Answer in numbered steps."
negative_prompt: "{question} Answer in one plain paragraph."
"""
N_WORKERS = 2
WANTED = 0.95


def measure(n_calls: int, per_minute: int, folder: Path) -> dict[str, float]:
    """Have ``n_calls`` made by two workers; returns what the server counted."""
    (folder / "styles").mkdir(parents=True)
    (folder / "styles" / "steps.yaml").write_text(STYLE)
    (folder / "questions.txt").write_text("".join(f"What is item number {n}?\n" for n in range(n_calls // 2)))
    with running_endpoint(delay=0.3, per_minute=per_minute) as endpoint, running_broker(folder / "broker") as broker:
        settings = Settings(
            styles=["steps"],
            styles_dir=str(folder / "styles"),
            custom_questions_file=str(folder / "questions.txt"),
            base_url=endpoint.base_url,
            teacher_model="counted",
            requests_per_minute=per_minute,
        )
        environment = {
            "FACTORY_BROKER_URL": broker,
            "FACTORY_STORE": str(folder / "runs"),
            "FACTORY_REQUESTS_PER_MINUTE": str(per_minute),
            "FACTORY_API_DELAY": "null",  # whatever a config.yaml here says
            "OMP_NUM_THREADS": "1",
        }
        os.environ.update(environment)
        from workers.flow.submit import submit

        with contextlib.ExitStack() as stack:
            for n in range(N_WORKERS):
                stack.enter_context(running_crew(["teacher"], folder / f"worker-{n}", environment | {"WORKER": str(n)}))
            store = Store(str(folder / "runs"))
            submit(plan_run(settings, store, folder), store)
            await_calls(endpoint, n_calls, patience=120 + 60 * n_calls / per_minute * 2)
    return summarize(endpoint, per_minute)


def await_calls(endpoint: Endpoint, n_calls: int, patience: float) -> None:
    """Wait until the server has sent ``n_calls`` good answers."""
    deadline = time.monotonic() + patience
    while endpoint.statuses[200] < n_calls:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {endpoint.statuses[200]} of {n_calls} calls arrived in {patience:.0f} s")
        time.sleep(0.2)


def summarize(endpoint: Endpoint, per_minute: int) -> dict[str, float]:
    """429s, and the share of the allowance used between the first minute's end and the last call."""
    arrivals = sorted(endpoint.arrivals)
    start = arrivals[0] + 60
    later = [at for at in arrivals if at >= start]
    allowed = (arrivals[-1] - start) * per_minute / 60
    return {
        "calls": len(arrivals),
        "answers_429": endpoint.statuses[429],
        "seconds": round(arrivals[-1] - arrivals[0], 1),
        "used_of_allowance": round((len(later) - 1) / allowed, 4) if later else 0.0,
        "most_in_a_minute": max(sum(at - 60 < other <= at for other in arrivals) for at in arrivals),
        "requests_per_minute": per_minute,
        "workers": N_WORKERS,
    }


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description="Two teacher workers against a server that counts.")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--per-minute", type=int, default=120)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.calls, options.per_minute, Path(folder) / "rate")
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>22}: {value}" for name, value in figures.items()))
    return 0 if figures["answers_429"] == 0 and figures["used_of_allowance"] >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
