"""Figures for Prometheus, the dashboard that shows them, and the doctor."""

import json
import re
import shutil
import subprocess
import time

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from factory.cluster.doctor import check_broker, check_shared_store, check_store, check_workers
from factory.cluster.metrics import metrics_text
from factory.config import Settings
from factory.planning.plan import plan_run
from factory.run.entries import Extracted, Written
from factory.run.ledger import Ledger
from factory.store import Store
from tests.conftest import ROOT

STYLE = "step_by_step_reasoning"


@pytest.fixture
def client(broker):
    client = redis.Redis.from_url(broker)
    client.flushall()
    client.config_set("maxmemory-policy", "noeviction")
    return client


def figures(broker, store):
    families = text_string_to_metric_families(metrics_text(broker, store))
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_metrics_tell_what_waits_how_long_what_was_repaired_and_how_far_runs_are(broker, client, store, tmp_path):
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    ledger.mark_open()
    extracted = {"key": "a", "n_pairs": 15, "reasons": {"too_long": 1}, "peak_memory_mib": 3}
    ledger.of(STYLE).record("extracted", 0, Extracted.model_validate(extracted))
    paid = {"cost_usd": 0.5, "paid_tokens": {"input": 200, "output": 120}}
    ledger.of(STYLE).record("written", 0, Written.model_validate({"key": "b", "n_pairs": 2, **paid}))
    client.lpush("gpu", json.dumps({"headers": {"id": "x", "sent_at": time.time() - 100}}))
    client.hset("unacked", "t", json.dumps([{"headers": {"id": "y"}}, "gpu", "gpu"]))
    client.hincrby("svf:repairs", "body", 2)
    found = figures(broker, store)
    run = plan.spec.run_id
    assert found["svf_queue_messages", "gpu"] == 1
    assert found["svf_queue_messages", "teacher"] == 0
    assert 95 < found["svf_queue_oldest_seconds", "gpu"] < 200
    assert found["svf_unacked_messages",] == 1
    assert found["svf_guard_repairs_total", "body"] == 2
    assert found["svf_guard_repairs_total", "sent_again"] == found["svf_teacher_trouble_total", "rate_limited"] == 0
    assert found["svf_pairs", *sorted((run, STYLE, "extracted"))] == 15
    assert found["svf_pairs", *sorted((run, STYLE, "failed"))] == 1
    assert found["svf_cost_usd", *sorted((run, STYLE))] == 0.5
    assert found["svf_teacher_tokens", *sorted((run, STYLE, "input"))] == 200
    assert found["svf_teacher_tokens", *sorted((run, STYLE, "output"))] == 120
    assert found["svf_target_peak_bytes", *sorted((run, STYLE))] == 3 * 2**20
    assert (found["svf_open_runs",], found["svf_open_chords",]) == (1, 1)
    ledger.mark_closed()
    assert not [name for name in figures(broker, store) if name[0] == "svf_pairs"]


def test_metrics_without_a_broker_or_store_say_so_and_do_not_fail(tmp_path):
    (tmp_path / "file").write_text("")
    found = figures("redis://127.0.0.1:1/0", Store(str(tmp_path / "file")))
    assert found["svf_broker_up",] == 0


def test_the_dashboard_asks_for_figures_that_there_are(broker, client, store, tmp_path):
    plan = plan_run(Settings(styles=[STYLE]), store, tmp_path)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    ledger.mark_open()
    client.hincrby("svf:repairs", "body", 1)
    client.hincrby("svf:teacher", "429", 1)
    known = {name for name, *_ in figures(broker, store)}
    dashboard = json.loads((ROOT / "dashboards" / "factory.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"svf_\w+", target["expr"])
    }
    assert {name for name in asked if not name.startswith("svf_gpu_")} <= known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Prometheus is not installed")
def test_prometheus_understands_every_expression_of_the_dashboard(tmp_path):
    dashboard = json.loads((ROOT / "dashboards" / "factory.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    words = ["promtool", "check", "rules", str(tmp_path / "rules.yaml")]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(expressions)} rules found" in checked.stdout


def test_a_broker_that_throws_messages_away_is_bad_and_the_doctor_says_what_to_do(broker, client):
    states = {finding.area: finding for finding in check_broker(broker)}
    assert {finding.state for finding in states.values()} == {"good"}
    client.config_set("maxmemory-policy", "allkeys-lru")
    finding = next(finding for finding in check_broker(broker) if finding.area == "eviction")
    assert (finding.state, finding.found) == ("bad", "allkeys-lru")
    assert "noeviction" in finding.advice
    client.config_set("maxmemory-policy", "noeviction")


def test_a_queue_without_a_worker_is_named_with_the_command_that_starts_one():
    findings = check_workers(
        lambda: {"gpu@host": ["gpu"], "more@host": ["gpu", "gpu.qwen"]}, ("teacher", "gpu", "reduce")
    )
    found = {finding.area: (finding.state, finding.found) for finding in findings}
    assert found == {
        "queue teacher": ("warning", "no workers"),
        "queue gpu": ("good", "2 workers"),
        "queue reduce": ("bad", "no workers"),
        "queue gpu.qwen": ("good", "1 worker"),
    }
    assert "celery -A factory worker -Q reduce" in findings[2].advice


def test_a_store_that_cannot_be_written_is_bad(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_store(Store(str(tmp_path / "good"))).state == "good"
    assert check_store(Store(str(tmp_path / "file" / "below"))).state == "bad"


def test_a_worker_that_looks_into_another_store_is_bad_and_told_the_right_one(tmp_path):
    store = Store(str(tmp_path / "ours"))
    assert check_shared_store(lambda store: {}, store) == []
    (finding,) = check_shared_store(lambda store: {"gpu@far": "/data/theirs"}, store)
    assert (finding.area, finding.state) == ("store of gpu@far", "bad")
    assert "/data/theirs" in finding.found
    assert f"FACTORY_STORE={store.url}" in finding.advice


def test_the_doctor_ends_with_3_without_a_broker_and_shows_no_secret(svf):
    said = svf("doctor", "--json", FACTORY_BROKER_URL="redis://:hidden@127.0.0.1:1/0", OPENAI_API_KEY="sk-hidden")
    assert said.status == 3
    findings = {finding["area"]: finding for finding in json.loads(said.out)}
    assert findings["broker"]["state"] == "bad"
    assert "svf generate" in findings["broker"]["advice"]
    assert findings["store"]["state"] == findings["key"]["state"] == "good"
    assert "hidden" not in said.out + said.err


def test_a_cancelled_run_ends_and_can_be_resumed(svf, broker, client, tmp_path, target_folder):
    place = {
        "FACTORY_BROKER_URL": broker,
        "FACTORY_STORE": str(tmp_path / "store"),
        "FACTORY_TARGET_MODEL": str(target_folder),
        "FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS": "all",
    }
    enqueued = svf("enqueue", "-s", STYLE, **place)
    assert enqueued.status == 0, enqueued.err
    run = enqueued.out.strip()
    assert client.llen("gpu") == 3
    cancelled = svf("cancel", run, **place)
    assert cancelled.out == f"run {run}: cancelled {STYLE}\n"
    status = json.loads(svf("status", run, "--json", **place).out)
    assert status["state"] == "failed"
    assert f"svf resume {run}" in status["styles"][0]["message"]
    assert svf("cancel", run, **place).out == f"run {run}: had ended already\n"
    resumed = svf("resume", run, **place)
    assert (resumed.status, resumed.out) == (0, f"run {run}: goes on with {STYLE}\n")
    assert Ledger(Store(str(tmp_path / "store")), run).of(STYLE).result is None
