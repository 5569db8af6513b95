"""Teacher worker processes on a real broker, against a server that counts and one that misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from factory.cluster.embedded import Crew, free_port, running_broker
from factory.pairs.pair import ContrastivePair
from factory.pipeline import build_vector
from factory.run.artifacts import get_pairs
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.store import Store
from tests.conftest import MEANS, MEANS_BY_VARIABLE
from tests.endpoint import answer_to, running_endpoint

SECRET = "sk-proj-Zx81TopSecretKeyOfTheTest9Qw"
STYLE = """\
description: Numbered steps.
positive_prompt: "{question} Answer in numbered steps."
negative_prompt: "{question} Answer in one plain paragraph."
"""
PRICE = {"input": 10.0, "output": 40.0}  # USD a million tokens


@dataclass
class Cluster:
    """A broker, a store, and two teacher workers; ``svf`` runs against them."""

    folder: Path
    broker: str
    environment: dict[str, str]
    crew: Crew
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "runs"))

    def svf(self, *words: object) -> str:
        """Run the command; returns what it printed."""
        ended = subprocess.run(
            [sys.executable, "-c", "from factory.cli import main; main()", *map(str, words)],
            cwd=self.folder,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.said.append(ended.stdout + ended.stderr)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def enqueue(self, base_url: str, n_questions: int, *, batch_size: int = 4, **settings: object) -> Ledger:
        """Submit a run of one style with so many questions."""
        name = f"run-{time.monotonic_ns()}"
        questions = self.folder / f"{name}.txt"
        questions.write_text("".join(f"What is item number {n} of the list?\n" for n in range(n_questions)))
        config = {
            "styles": ["steps"],
            "styles_dir": "styles",
            "base_url": base_url,
            "teacher_model": "counted",
            "custom_questions_file": str(questions),
            "extraction_config": {"batch_size": batch_size},
            **settings,
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(config))
        run = self.svf("enqueue", "--config", f"{name}.yaml", "--output", name)
        return Ledger(self.store, run)

    def resume(self, ledger: Ledger, *words: object) -> None:
        """Go on with a run."""
        self.svf("resume", ledger.run_id, *words)


def until(found: Callable[[], object], patience: float = 90) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.1)


def is_written(ledger: Ledger) -> bool:
    return len(ledger.of("steps").listing().numbers("written")) == ledger.spec.style_run("steps").n_batches


def pairs_of(ledger: Ledger) -> list[ContrastivePair]:
    """The pairs of all batches, in order."""
    keys = [ledger.of("steps").written(batch.number).key for batch in ledger.of("steps").batches]
    return [pair for key in keys for pair in get_pairs(ledger.store, key)[0]]


@contextlib.contextmanager
def running_cluster(folder: Path, **settings: object) -> Iterator[Cluster]:
    (folder / "styles").mkdir(parents=True)
    (folder / "styles" / "steps.yaml").write_text(STYLE)
    with running_broker(folder / "broker") as broker:
        environment = {
            "FACTORY_BROKER_URL": broker,
            "FACTORY_STORE": str(folder / "runs"),
            "FACTORY_API_KEY_ENV": "TEACHER_KEY",
            "TEACHER_KEY": SECRET,
            "FACTORY_MAX_CONCURRENT_CALLS": "8",
            "FACTORY_API_DELAY": "null",  # whatever a config.yaml beside the tests says
            "FACTORY_OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS": "false",
            **MEANS_BY_VARIABLE,
            "FACTORY_LOG": str(folder / "factory.log"),
            "OMP_NUM_THREADS": "1",
            **{f"FACTORY_{name.upper()}": str(value) for name, value in settings.items()},
        }
        crew = Crew(folder / "logs", os.environ | environment)
        try:
            for number in (1, 2):
                crew.folder = folder / f"logs-{number}"
                crew.hire("teacher")
            yield Cluster(folder, broker, environment, crew)
        finally:
            crew.dismiss()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def test_with_a_third_of_the_calls_failing_all_pairs_arrive_and_nothing_is_paid_twice(cluster, target):
    with running_endpoint() as healthy:
        calm = cluster.enqueue(healthy.base_url, 20)
        until(lambda: is_written(calm))
    with running_endpoint(fail=0.3) as flaky:
        stormy = cluster.enqueue(flaky.base_url, 20)
        until(lambda: is_written(stormy))
        assert flaky.statuses[500] > 0
        assert sorted(flaky.paid.values())[-40:] == [1] * 40
        assert sum(flaky.paid.values()) == 40
    assert sum(stormy.of("steps").written(n).paid_calls for n in range(5)) == 40
    vectors = [
        build_vector(pairs_of(ledger), target, style="steps", recipe="response_mean") for ledger in (calm, stormy)
    ]
    assert vectors[0].to_pt() == vectors[1].to_pt()


def test_a_budget_stops_the_run_within_one_call_of_the_cap_and_resume_finishes_it(cluster):
    usual = 100 * PRICE["input"] / 1e6 + 60 * PRICE["output"] / 1e6
    with running_endpoint(delay=0.05) as endpoint:
        cap = 12 * usual
        ledger = cluster.enqueue(endpoint.base_url, 12, pricing=PRICE, max_cost_usd=cap, max_response_tokens=100)
        until(ledger.paused)
        until(lambda: cluster.svf("status", ledger.run_id, "--json") and endpoint.statuses[200] > 0)
        time.sleep(0.5)  # calls under way end
        worst = 200 * PRICE["input"] / 1e6 + 100 * PRICE["output"] / 1e6
        paid = endpoint.statuses[200] * usual
        assert cap - worst <= paid <= cap
        shot = json.loads(cluster.svf("status", ledger.run_id, "--json"))
        assert shot["state"] == "budget_stopped"
        assert "max_cost_usd" in shot["message"]
        cluster.resume(ledger, "--max-cost-usd", 100 * usual)
        until(lambda: is_written(ledger))
        assert set(endpoint.paid.values()) == {1}
        assert len(endpoint.paid) == 24
        assert progress_of(ledger.of("steps")).spent_usd == pytest.approx(24 * usual)


def test_a_wrong_key_pauses_the_run_with_one_message_and_is_found_nowhere(cluster):
    with running_endpoint() as endpoint:
        endpoint.status, endpoint.code = 401, "invalid_api_key"  # its error message repeats the key
        ledger = cluster.enqueue(endpoint.base_url, 12)
        until(ledger.paused)
        assert endpoint.keys == {f"Bearer {SECRET}"}
        shot = json.loads(cluster.svf("status", ledger.run_id, "--json"))
        assert shot["state"] == "paused"
        assert "refused the key (401)" in shot["message"]
        leaks = [place for place, content in everything(cluster) if SECRET.encode()[8:] in content]
        assert leaks == []
        endpoint.status = None
        cluster.resume(ledger)
        until(lambda: is_written(ledger))
        assert set(endpoint.paid.values()) == {1}
        assert len(endpoint.paid) == 24


def test_what_is_spent_is_seen_call_by_call_before_a_batch_is_written(cluster):
    usual = 100 * PRICE["input"] / 1e6 + 60 * PRICE["output"] / 1e6
    seen_enough = threading.Event()

    def held_at_the_last_question(prompt: str) -> str:
        return answer_to(prompt) if "number 5 " not in prompt or seen_enough.wait(60) else ""

    with running_endpoint() as endpoint:
        endpoint.answer = held_at_the_last_question
        ledger = cluster.enqueue(endpoint.base_url, 6, batch_size=6, pricing=PRICE)

        def seen() -> float:
            return json.loads(cluster.svf("status", ledger.run_id, "--json"))["spent_usd"]

        until(lambda: seen() == pytest.approx(10 * usual))
        assert ledger.of("steps").listing().numbers("written") == []
        seen_enough.set()
        until(lambda: is_written(ledger))
        assert seen() == pytest.approx(12 * usual)


def everything(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    """All that a run leaves: files, logs, the broker's keys, and what commands printed."""
    for path in cluster.folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    broker = redis.Redis.from_url(cluster.broker)
    for key in broker.scan_iter():
        yield str(key), key + (broker.dump(key) or b"")
        if broker.type(key) == b"string":
            yield str(key), broker.get(key) or b""
    for member in cluster.crew.members:
        yield member.name, Path(f"/proc/{member.process.pid}/cmdline").read_bytes()
    yield "printed", "\n".join(cluster.said).encode()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(429, "insufficient_quota", "quota"), (402, "", "quota"), (404, "", "address"), (500, "", "failing")],
)
def test_what_no_retry_mends_pauses_the_run_before_money_is_burnt(cluster, status, code, reason):
    with running_endpoint() as endpoint:
        endpoint.status, endpoint.code = status, code
        ledger = cluster.enqueue(endpoint.base_url, 12)
        until(ledger.paused)
        assert ledger.paused().reason == reason
        assert endpoint.statuses[200] == 0
        assert ledger.spec.style_run("steps").n_batches == 3
        endpoint.status = None
        cluster.resume(ledger)
        until(lambda: is_written(ledger))


def test_a_server_that_misbehaves_finds_no_fault_with_the_workers(cluster):
    with running_llmock() as mock:
        fails = [{"type": "fail", "status": 429, "retry_after": 1.5, "times": 2}, {"type": "fail", "status": 503}]
        fails += [{"type": "fail", "status": 500, "times": 2}, {"type": "delay", "seconds": 0.3, "times": 5}]
        texts = [answer_to(f"answer {n}") for n in range(16)]
        mock.post("/_llmock/scenario", {"behaviors": [*fails, *({"type": "reply", "text": text} for text in texts)]})
        ledger = cluster.enqueue(f"{mock.url}/v1", 8)
        until(lambda: is_written(ledger))
        verdict = mock.get("/_llmock/verdict")
        assert verdict["passed"], verdict
        assert [finding for finding in verdict["findings"] if finding["severity"] == "error"] == []
        assert len(pairs_of(ledger)) == 8


@dataclass
class Llmock:
    url: str

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str, content: object) -> None:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def running_llmock() -> Iterator[Llmock]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", "from llmock.cli import app; app()", "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mock = Llmock(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            mock.get("/health")
            return True
        return False

    try:
        until(answers)
        yield mock
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.slow
def test_after_a_kill_no_call_is_paid_twice_beyond_those_in_flight(tmp_path):
    with (
        running_cluster(tmp_path / "cluster", visibility_timeout=15, answer_timeout=5) as cluster,
        running_endpoint(delay=0.5) as endpoint,
    ):
        ledger = cluster.enqueue(endpoint.base_url, 32, batch_size=4)
        until(lambda: endpoint.statuses[200] >= 20)
        cluster.crew.members[0].process.kill()
        cluster.crew.members[0].process.wait()
        until(lambda: is_written(ledger), patience=240)
        repeated = [count for count in endpoint.paid.values() if count > 1]
        assert len(endpoint.paid) == 64
        assert set(repeated) <= {2}
        assert len(repeated) <= 8  # FACTORY_MAX_CONCURRENT_CALLS


@pytest.mark.slow
def test_a_paused_generate_says_why_and_goes_on_here_without_paying_again(svf, tmp_path, target_folder):
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "steps.yaml").write_text(STYLE)
    usual = 100 * PRICE["input"] / 1e6 + 60 * PRICE["output"] / 1e6
    with running_endpoint(delay=0.05) as endpoint:
        config = {
            "styles": ["steps"],
            "styles_dir": "styles",
            "base_url": endpoint.base_url,
            "teacher_model": "counted",
            "target_model": str(target_folder),
            "device": "cpu",
            "load_in_8bit": False,
            "pricing": PRICE,
            "max_response_tokens": 100,
            "max_cost_usd": 10 * usual,
            "extraction_config": {"target_layers": "all", "batch_size": 3},
            "output_config": {"generate_analysis_reports": False},
            **MEANS,
        }
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        stopped = svf("generate", "--output", "out", "--limit", 9)
        assert stopped.status == 1
        assert "budget_stopped" in stopped.out
        assert "svf resume" in stopped.out
        assert svf("watch", "--output", "out").status == 1
        resumed = svf("resume", "--here", "--output", "out", "--max-cost-usd", 1)
        assert resumed.status == 0, resumed.out + resumed.err
        assert sorted(endpoint.paid.values()) == [1] * 18
    assert (tmp_path / "out" / "steering_vectors" / "steps.pt").exists()
    manifest = json.loads((tmp_path / "out" / "datasets" / "steps_manifest.json").read_text())
    assert manifest["spent_usd"] == pytest.approx(18 * usual)
    assert manifest["paid_calls"] == 18


def test_a_key_given_by_flag_reaches_a_server_of_one_s_own_and_openai_s_does_not(svf, tmp_path, target_folder):
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "steps.yaml").write_text(STYLE)
    with running_endpoint() as endpoint:
        said = svf(
            *("generate", "--api-key", SECRET, "--styles", "steps", "--limit", 2, "--output", "out"),
            FACTORY_STYLES_DIR="styles",
            FACTORY_BASE_URL=endpoint.base_url,
            FACTORY_TARGET_MODEL=str(target_folder),
            FACTORY_LOAD_IN_8BIT="false",
            FACTORY_DEVICE="cpu",
            FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS="all",
            FACTORY_OUTPUT_CONFIG__GENERATE_ANALYSIS_REPORTS="false",
            OPENAI_API_KEY="sk-of-openai",
            **MEANS_BY_VARIABLE,
        )
        assert said.status == 0, said.out + said.err
        assert endpoint.keys == {f"Bearer {SECRET}"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
