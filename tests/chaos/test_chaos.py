"""A few seeds of the chaos suite; ``make chaos`` runs as many as you like."""

import json
import subprocess
import sys

import pytest

from tests.chaos.faults import ALL, DUPLICATES, ENQUEUER, MIXED
from tests.conftest import ROOT


def break_things(*words, timeout=280):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--json", "--jobs", "3", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ended.stdout.strip(), ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])["rows"]


def hold(rows):
    for row in rows:
        seeds = row["seeds"]
        kept = {name: row[name] for name in ("completed", "body_once", "pairs_right", "bit_equal", "paid_right")}
        assert kept == dict.fromkeys(kept, seeds), f"{row['fault']}: {row['errors'] or kept}"


def test_a_run_survives_what_plain_chords_do_not_and_gives_the_same_bytes():
    """A flushed broker, a dead enqueuer, deaths at the two worst lines, duplicates, and a mixture."""
    chosen = [
        "broker flushed",
        "killed between result and count",
        "killed between claim and body",
        DUPLICATES,
        ENQUEUER,
        MIXED,
    ]
    hold(break_things("--seeds", "1", "--first", "2", *(word for fault in chosen for word in ("--fault", fault))))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_fault_is_survived():
    rows = break_things("--seeds", "1", "--first", "1000", timeout=580)
    assert [row["fault"] for row in rows] == ALL
    hold(rows)


def poisoned(kind):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos.poison", kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_batch_that_kills_its_worker_every_time_is_given_up_after_three_tries():
    found = poisoned("batch")
    counts = {"extracted": 44, "reasons": {"worker_died": 4}, "pairs_failed": 4}
    assert found == {"state": "done", "deaths": 3, "message": None} | counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("evaluation", "made, but not evaluated: evaluate_part 2 ended its worker 3 times and is given up"),
        (
            "learning",
            "made, but not learned: learn_part 2 ended its worker 3 times and is given up. The vector is the mean, not "
            "evaluated; 'svf resume' tries again",
        ),
    ],
)
def test_a_part_that_kills_its_worker_every_time_is_given_up_and_the_vector_exported(kind, said):
    counts = {"extracted": 48, "reasons": {}, "pairs_failed": 0}
    assert poisoned(kind) == {"state": "done", "deaths": 3, "message": said} | counts
