"""A cluster has one store: a worker that looks into another is found before a run, or named while it is watched."""

import json
import re
import sys
import time

import pytest

from tests.conftest import STYLES
from tests.programs import running_program


def until(found, patience=120.0):
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_worker_with_another_store_is_named_by_watchers_and_refused_by_the_next_enqueue(
    broker, svf, tmp_path, target_folder
):
    places = {"FACTORY_BROKER_URL": broker.rsplit("/", 1)[0] + "/7"}  # a database of its own
    run_like = {"FACTORY_TARGET_MODEL": str(target_folder), "FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS": "all"}
    words = ("enqueue", "--styles", STYLES[0], "--limit", 2, "--output", "out")
    sent = svf(*words, **places, **run_like)
    assert sent.status == 0, sent.err
    run = sent.out.strip()
    assert f"svf watch {run} --output out\n" in sent.err  # the very words to type
    assert f"FACTORY_STORE={tmp_path / 'out' / 'runs'}" in sent.err
    worker = [sys.executable, "-m", "celery", "-A", "factory", "worker", "-Q", "gpu", "-n", "lost@%h", "-l", "info"]
    with running_program(worker, tmp_path / "elsewhere", places | {"FACTORY_STORE": "own"}):
        log = tmp_path / "elsewhere" / "log"
        until(lambda: f"run {run} is not in this worker's store" in log.read_text())
        status = svf("status", run, "--output", "out", **places)
        assert status.status == 0, status.err
        assert f"its store is {tmp_path / 'elsewhere' / 'own'}" in status.out
        assert str(tmp_path / "out" / "runs") in status.out
        examined = svf("doctor", "--json", "--output", "out", **places)
        (store,) = [one for one in json.loads(examined.out) if one["area"].startswith("store of lost@")]
        assert store["state"] == "bad"
        assert str(tmp_path / "elsewhere" / "own") in store["found"]
        assert f"FACTORY_STORE={tmp_path / 'out' / 'runs'}" in store["advice"]
        again = svf(*words, "--json", **places, **run_like)
        assert again.status == 1
        assert re.search(r"lost@\S+ has " + re.escape(str(tmp_path / "elsewhere" / "own")), again.err)
        assert again.out == ""
    with running_program(worker, tmp_path / "right", places | {"FACTORY_STORE": str(tmp_path / "out" / "runs")}):
        until(lambda: "ready" in (tmp_path / "right" / "log").read_text())
        sent = svf(*words, "--json", **places, **run_like)
    assert sent.status == 0, sent.err
    assert json.loads(sent.out)["watch"].startswith("svf watch ")
