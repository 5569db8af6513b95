"""``python -m tests.chaos --seeds N [--fault NAME] [--jobs J]``: the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from tests.chaos.cluster import CALLS, Cluster
from tests.chaos.faults import (
    ALL,
    DUPLICATES,
    ENQUEUER,
    EVALUATION_KILLED,
    FAULTS,
    GENERATE,
    LEARNING_KILLED,
    MIXED,
    ROUND_KILLED,
    TEACHER,
    TEACHER_KILLED,
    mixture,
)
from tests.chaos.generate import generate_twice

STYLES = {"step_by_step_reasoning": 48}  # pairs that exist
WRITTEN = {"steps": 24}  # pairs that a teacher writes
# Kinds of runs, each with its own reference.
PLAIN, TAUGHT, EVALUATED, LEARNED = "plain", "taught", "evaluated", "learned"
CALM = {
    PLAIN: "none",
    TAUGHT: "none, with a teacher",
    EVALUATED: "none, with an evaluation",
    LEARNED: "none, with learning",
}
FAILING = 0.3  # of a teacher's calls
PATIENCE = 90.0  # s that a run gets to end by itself


@dataclass
class Outcome:
    """What became of one seed."""

    fault: str
    seed: int
    completed: bool = False
    resumed: bool = False
    repaired: int = 0
    bodies: int = 0
    pairs_right: bool = False
    kind: str = PLAIN
    left: list[str] = field(default_factory=list)  # of a killed svf generate
    paid_twice: int = 0
    paid_right: bool = True
    sha256: str = ""
    seconds: float = 0.0
    error: str = ""


def run_seed(fault: str, seed: int, folder: Path, target: Path, *, learning: bool = False) -> Outcome:
    rng = random.Random(f"{fault}:{seed}")
    cluster = Cluster(folder, target, rng)
    kind = kind_of(fault, rng, learning=learning)
    teacher = kind == TAUGHT
    outcome = Outcome(fault, seed, kind=kind)
    faults = [fault] if fault in FAULTS else []
    if fault == MIXED:
        faults = mixture(rng, kind)
    styles = WRITTEN if teacher else STYLES
    try:
        if kind == EVALUATED:
            cluster.evaluate()
        if kind == LEARNED:
            cluster.learn()
        started = time.monotonic()
        if fault == GENERATE:
            run_generate(cluster, outcome)
            outcome.seconds = time.monotonic() - started
            return outcome
        prepare(cluster, fault, styles, teacher=teacher)
        started = time.monotonic()
        dies = fault == ENQUEUER or (fault == MIXED and rng.random() < 0.2)
        last = sum(styles.values()) // 4 - 1
        cluster.reap(cluster.enqueue(styles, die_after=rng.randint(0, last) if dies else None), 60)
        for name in faults:
            if kind == LEARNED:  # a fault before the first round is no matter of learning
                cluster.await_round(rng.randint(0, 5))
            FAULTS[name](cluster)
        end(cluster, outcome, styles)
        outcome.seconds = time.monotonic() - started
        judge(cluster, outcome, styles)
        if teacher:  # a call may be paid again only if a fault caught it in flight
            judge_payments(cluster, outcome, calls=2 * sum(styles.values()), in_flight=CALLS * len(faults))
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        cluster.stop()
    return outcome


def kind_of(fault: str, rng: random.Random, *, learning: bool) -> str:
    """What is run under a fault: pairs that exist, a teacher, learning, or an evaluation at the end."""
    if fault in (TEACHER, TEACHER_KILLED, CALM[TAUGHT]):
        return TAUGHT
    if fault in (EVALUATION_KILLED, CALM[EVALUATED]):
        return EVALUATED
    if fault in (LEARNING_KILLED, ROUND_KILLED, CALM[LEARNED]):
        return LEARNED
    usual = LEARNED if learning and fault != GENERATE else PLAIN
    return rng.choices((TAUGHT, EVALUATED, usual), (3, 3, 4))[0] if fault == MIXED and not learning else usual


def run_generate(cluster: Cluster, outcome: Outcome) -> None:
    """A killed ``svf generate`` and the one after it: complete only if nothing of the first was left."""
    ((style, pairs),) = STYLES.items()
    cluster.write_dataset(style)
    outcome.left, outcome.sha256 = generate_twice(cluster, style, pairs)
    log = (cluster.folder / "steering_vector_generation.log").read_text(errors="replace")
    made = [line for line in log.splitlines() if f" {pairs} pairs made" in line]
    runs = {line.partition(" run=")[2].split()[0] for line in made}
    outcome.pairs_right, outcome.bodies = bool(made), 1 + len(made) - len(runs)  # each run makes its vector once
    outcome.completed = not outcome.left
    outcome.error = f"left behind: {', '.join(outcome.left)}" if outcome.left else ""


def prepare(cluster: Cluster, fault: str, styles: dict[str, int], *, teacher: bool) -> None:
    """Start everything but the run."""
    for style in styles:
        if teacher:
            cluster.start_endpoint(style, 0.0 if fault == CALM[TAUGHT] else FAILING)
        else:
            cluster.write_dataset(style)
    if fault == DUPLICATES:
        cluster.settings["VISIBILITY_TIMEOUT"] = "30"
    cluster.start_broker()
    for name in ("gpu1", "gpu2", "reduce", *(["teacher"] if teacher else [])):
        if fault == DUPLICATES and name == "reduce":
            # The shortest timeout of any client wins: this one hands out again what others are still at.
            cluster.settings["VISIBILITY_TIMEOUT"] = "1"
        cluster.start_worker(name)


def end(cluster: Cluster, outcome: Outcome, styles: dict[str, int]) -> None:
    """Wait for the run's end: by itself, or after ``svf resume`` on workers whose store is in order again."""
    outcome.completed = wait(cluster, styles)
    for _ in range(2):
        if outcome.completed and not cluster.failed(styles):
            return
        outcome.resumed = True
        cluster.mend()
        cluster.resume()
        outcome.completed = wait(cluster, styles)


def wait(cluster: Cluster, styles: dict[str, int]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if cluster.ended(styles):
            return True
        cluster.revive()
        time.sleep(0.1)
    return False


def judge(cluster: Cluster, outcome: Outcome, styles: dict[str, int]) -> None:
    from factory.run.progress import progress_of

    ledger = cluster.ledger()
    log = (cluster.folder / "events.log").read_text(errors="replace")
    outcome.bodies = log.count(" pairs made")
    outcome.repaired = sum(map(int, cluster.client().hvals("svf:repairs")))
    for style, pairs in styles.items():
        result = ledger.of(style).result
        if result is None or result.state != "done":
            outcome.completed, outcome.error = False, str(result and result.message)
            return
        progress = progress_of(ledger.of(style))
        outcome.pairs_right = progress.extracted + progress.failed == pairs
        outcome.sha256 += result.vector_sha256


def judge_payments(cluster: Cluster, outcome: Outcome, *, calls: int, in_flight: int) -> None:
    """Every request was paid, and none again but those that a fault caught on their way."""
    paid = [count for count in cluster.tally()["paid"].values() if count]
    outcome.paid_twice = sum(paid) - len(paid)
    outcome.paid_right = len(paid) == calls and outcome.paid_twice <= in_flight


def make_target(folder: Path) -> Path:
    """A tiny random Llama: real, and quick enough to be read a thousand times."""
    from factory.pairs.dataset import load_pairs
    from tests.conftest import ROOT, save_tiny_model

    pairs = load_pairs(ROOT / "datasets" / "step_by_step_reasoning_pairs.jsonl")
    return save_tiny_model(folder, [pair.positive_response for pair in pairs])


def in_child(fault: str, seed: int, base: Path, target: Path, *, learning: bool) -> int:
    """Run one seed in a process of its own; its outcome goes into a file."""
    pid = os.fork()
    if pid:
        return pid
    folder = base / f"{fault.replace(' ', '-').replace(',', '').replace('%', 'percent')}-{seed}"
    folder.mkdir(parents=True)
    outcome = run_seed(fault, seed, folder, target, learning=learning)
    (base / f"{folder.name}.json").write_text(json.dumps(asdict(outcome)))
    if not outcome.error and outcome.completed:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def run_all(work: list[tuple[str, int]], base: Path, target: Path, jobs: int, *, learning: bool) -> list[Outcome]:
    """Run every seed, ``jobs`` at a time: most of a seed is waiting."""
    running: set[int] = set()
    todo = list(work)
    while todo or running:
        while todo and len(running) < jobs:
            running.add(in_child(*todo.pop(0), base, target, learning=learning))
        pid, _ = os.wait()
        running.discard(pid)
        print(f"\r{len(work) - len(todo) - len(running)} of {len(work)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [Outcome(**json.loads(path.read_text())) for path in sorted(base.glob("*.json"))]


def table(outcomes: list[Outcome], references: dict[str, Outcome]) -> list[dict[str, object]]:
    rows = []
    for fault in [name for name in ALL if any(o.fault == name for o in outcomes)]:
        own = [o for o in outcomes if o.fault == fault]
        rows.append(
            {
                "fault": fault,
                "seeds": len(own),
                "completed": sum(o.completed for o in own),
                "by_resume": sum(o.completed and o.resumed for o in own),
                "repaired": sum(o.repaired > 0 for o in own),
                "body_once": sum(o.bodies == 1 for o in own),
                "pairs_right": sum(o.pairs_right for o in own),
                "bit_equal": sum(o.sha256 == references[o.kind].sha256 for o in own),
                "paid_right": sum(o.paid_right for o in own),
                "paid_twice": sum(o.paid_twice for o in own),
                "median_delay_s": round(statistics.median(o.seconds - references[o.kind].seconds for o in own), 1),
                "errors": [f"seed {o.seed}: {o.error}" for o in own if o.error],
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each fault")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--fault", action="append", choices=ALL, help="only this fault; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--learning", action="store_true", help="let runs learn, and meet faults at that")
    parser.add_argument("--folder", type=Path, help="keep files of failed seeds here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    base = options.folder or Path(tempfile.mkdtemp(prefix="svf-chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    preload()
    target = base / "target"
    if (pid := os.fork()) == 0:  # in a child: torch's threads do not survive a fork
        make_target(target)
        os._exit(0)
    os.waitpid(pid, 0)
    faults = options.fault or ALL
    learns = options.learning or {LEARNING_KILLED, ROUND_KILLED} & set(faults)
    references = {kind: calm_run(base, target, kind) for kind in CALM if kind != LEARNED or learns}
    for reference in references.values():
        if not reference.completed:
            print(f"the run without faults did not complete: {reference}; files are in {base}", file=sys.stderr)
            return 2
    seeds = range(options.first, options.first + options.seeds)
    work = [(fault, seed) for seed in seeds for fault in faults]
    outcomes = run_all(work, base, target, options.jobs, learning=options.learning)
    rows = table(outcomes, references)
    if options.json:
        print(json.dumps({"reference_s": [known.seconds for known in references.values()], "rows": rows}))
    else:
        show(rows, references)
    bad = any(row[what] != row["seeds"] for row in rows for what in ("completed", "bit_equal", "paid_right"))
    if not bad and not options.folder:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if bad else 0


def calm_run(base: Path, target: Path, kind: str) -> Outcome:
    """The run without a fault, in a process of its own."""
    name = f"calm-{kind}"
    folder, found = base / name, base / f"{name}.reference"
    folder.mkdir()
    if (pid := os.fork()) == 0:
        outcome = run_seed(CALM[kind], 0, folder, target)
        found.write_text(json.dumps(asdict(outcome)))
        os._exit(0)
    os.waitpid(pid, 0)
    return Outcome(**json.loads(found.read_text()))


def show(rows: list[dict[str, object]], references: dict[str, Outcome]) -> None:
    names = [name for name in rows[0] if name != "errors"]
    print("| " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    for known in references.values():
        print(f"\nFault {known.fault}: {known.seconds:.1f} s, sha256 {known.sha256[:16]}")
    for row in rows:
        for error in row["errors"]:
            print(f"{row['fault']}: {error}")


def preload() -> None:
    """Import what workers need, without connecting anything or starting threads."""
    for name in (
        "transformers.models.llama.modeling_llama",
        "factory.extraction.extract",
        "factory.learning.learn",
        "factory.pipeline",
        "factory.target.loading",
        "workers.flow.submit",
        "workers.flow.guard",
        "openai",
    ):
        import_module(name)


if __name__ == "__main__":
    sys.exit(main())
