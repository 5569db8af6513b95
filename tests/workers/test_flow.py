"""The whole flow with real workers on a real broker: same bytes everywhere, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import torch
import yaml

from factory import SteeringVector, build_vector, load_pairs
from factory.cluster.embedded import running_broker, running_crew
from factory.config import load_settings
from factory.learning.learn import learn_vector
from factory.learning.spec import Learning
from factory.run.ledger import Ledger
from factory.store import Store
from factory.vector.sharing import share
from tests.conftest import MEANS, ROOT
from tests.evaluated import SWEEP

SHIPPED = ROOT / "datasets"
STYLE = "step_by_step_reasoning"
LEARNING = Learning(rounds=3, pairs_per_round=4, pairs_per_part=2, response_tokens=8, validate_every=2)


@pytest.fixture
def config(tmp_path, target_folder) -> Path:
    """A run of two styles on the tiny model, without learning and evaluation."""
    path = tmp_path / "tiny.yaml"
    content = {
        "styles": [STYLE, "creative_explorer"],
        "target_model": str(target_folder),
        "device": "cpu",
        "load_in_8bit": False,
        "threads": 1,
        "extraction_config": {"target_layers": "1-3", "batch_size": 4},
        "output_config": {"generate_analysis_reports": False},
        **MEANS,
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads here as ``config`` gives a worker: how products are parted may decide a last bit."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def processes_that_know(text: str) -> list[str]:
    """Command lines of the processes whose environment holds ``text``, but this one's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                if text in environment and "State:\tZ" not in (entry / "status").read_text():
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                pass  # it has just ended
    return found


@pytest.mark.slow
def test_generate_enqueue_and_one_process_learn_the_same_bytes(svf, config, tmp_path, target, one_thread):
    # Given the same run, with learning, made three ways: all embedded, on separate workers, and in this process
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"learning": LEARNING.model_dump(mode="json")}))
    local = svf("generate", "--config", config, "--output", "local", "--limit", 10)
    assert local.status == 0, local.err
    with running_broker(tmp_path / "broker") as url:
        environment = {
            "FACTORY_BROKER_URL": url,
            "FACTORY_CONFIG": str(config),
            "FACTORY_STORE": str(tmp_path / "store"),
            "OMP_NUM_THREADS": "1",
        }
        with running_crew(["gpu", "gpu", "reduce"], tmp_path / "workers", environment):
            sent = svf("enqueue", "--config", config, "--limit", 10, "--json", **environment)
            assert sent.status == 0, sent.err
            run = json.loads(sent.out)["run"]
            watched = svf("watch", run, "--config", config, "--output", "cluster", **environment)
            assert watched.status == 0, watched.err
            shot = json.loads(svf("status", run, "--json", "--config", config, **environment).out)
    pairs = load_pairs(SHIPPED / f"{STYLE}_pairs.jsonl")[:10]
    here = build_vector(pairs, target, style=STYLE, layers="1-3")
    page = Ledger(Store(str(tmp_path / "store")), run).of(STYLE)
    mean = SteeringVector.from_bytes(page.store.read(page.mean_key), "mean.pt")
    learned = learn_vector(pairs, target, start=mean, learning=LEARNING)

    # Then the files are equal byte for byte, those of the mean to our numbers, and what was learned to our bytes
    for style in (STYLE, "creative_explorer"):
        one, two = (tmp_path / way / "steering_vectors" / f"{style}.pt" for way in ("local", "cluster"))
        assert one.read_bytes() == two.read_bytes()
    assert mean.value_vector.numpy().tobytes() == here.value_vector.numpy().tobytes()
    assert mean.key_vector.numpy().tobytes() == here.key_vector.numpy().tobytes()
    assert (tmp_path / "cluster" / "steering_vectors" / f"{STYLE}.pt").read_bytes() == learned.to_pt()
    assert learned != mean
    assert [entry.validation is not None for entry in page.all_rounds()] == [True, False, True, True]
    assert shot["state"] == "done"
    assert [style["extracted"] for style in shot["styles"]] == [10, 10]
    assert [style["learned"] for style in shot["styles"]] == [4, 4]


def test_generate_learns_and_shows_what_was_learned_beside_its_mean(svf, config, tmp_path):
    # Given the settings of a run that says nothing of whether it learns, but learns quickly and on two workers
    settings = yaml.safe_load(config.read_text())
    quick = LEARNING.model_dump(mode="json", exclude={"rounds"}) | {"strengths": [1]}
    changes = {"styles": [STYLE], "gpu_workers": 2, "learning": quick, "evaluation": SWEEP.model_dump()}
    config.write_text(yaml.safe_dump(settings | changes | {"output_config": {}, "threads": None}))
    assert load_settings(config).learning.rounds == Learning().rounds > 0

    # When it is made, in fewer rounds, and its vector exported
    made = svf("generate", "--config", config, "--output", "out", "--limit", 6, "--rounds", 2, COLUMNS="80")
    assert made.status == 0, made.err + made.out
    vector = tmp_path / "out" / "steering_vectors" / f"{STYLE}.pt"
    share(SteeringVector.load(vector), tmp_path / "shared")

    # Then terminal, report, template and card know the learned vector, and both workers had a hand in it
    assert "1 style, 6 pairs, target" in made.out
    assert ", 2 rounds of learning" in made.out
    assert "with the mean that it was learned from" in made.out
    assert re.search(r"; \d+% loop, \d+% with the mean; strength 1, layers all, 1 position, keys 1\)", made.out)
    (report,) = (tmp_path / "out" / "runs").glob("*/report.html")
    html = report.read_text()
    assert f'id="{STYLE}-learning-figure"' in html
    assert f'id="{STYLE}-sweep-figure"' not in html  # one setting is no sweep
    assert f'id="{STYLE}-probe-figure"' not in html
    assert html.index('<th scope="row">mean</th>') < html.index('<th scope="row">steered</th>')
    template = json.loads((tmp_path / "out/sam/assets/steering_vectors" / f"{STYLE}_template.json").read_text())
    known = template["metadata"]
    assert (known["recommended_strength"], known["recommended_key_strength"], known["recommended_positions"]) == (
        1,
        1,
        1,
    )
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "recommended: strength 1, keys 1, layers all" in card
    assert "| mean | " in card
    assert "rounds of likelihood" in card
    logs = {path.name for path in report.parent.glob("logs/gpu*.log")}
    assert logs == {"gpu-reduce.log", "gpu-reduce-2.log"}
    assert processes_that_know(str(tmp_path / "out")) == []


def test_a_run_leaves_every_promised_file_and_no_process(svf, config, tmp_path):
    made = svf("generate", "--config", config, "--output", "out", "--limit", 4)

    assert made.status == 0, made.err
    out = tmp_path / "out"
    for style in (STYLE, "creative_explorer"):
        assert (out / "steering_vectors" / f"{style}.pt").is_file()
        assert (out / "steering_vectors" / f"{style}.safetensors").is_file()
        template = json.loads((out / "sam/assets/steering_vectors" / f"{style}_template.json").read_text())
        assert template["style_name"] == style
        both = (SteeringVector.load(out / "steering_vectors" / f"{style}.{end}") for end in ("pt", "safetensors"))
        assert next(both) == next(both)
    events = (out / "steering_vector_generation.log").read_text()
    assert f"style={STYLE} " in events
    assert "task=" in events
    assert processes_that_know(str(out)) == []


def test_an_interrupted_run_leaves_no_process_and_the_next_one_reuses_what_was_done(svf, config, tmp_path):
    # Given a run that is interrupted as soon as its first batch is extracted
    command = [sys.executable, "-c", "from factory.cli import main; main()"]
    words = ["generate", "--config", str(config), "--output", str(tmp_path / "out")]
    running = subprocess.Popen([*command, *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    batches = tmp_path / "out" / "runs" / "batches"
    while running.poll() is None and not (batches.is_dir() and any(batches.glob("*.safetensors"))):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    kept = {path.name: path.stat().st_mtime_ns for path in batches.glob("*.safetensors")}

    # When the same command runs again
    again = svf(*words)

    assert running.returncode == 130, said
    assert b"Traceback" not in said
    assert b"this run goes on with: svf resume " in said
    assert processes_that_know(str(tmp_path / "out")) == []
    assert again.status == 0, again.err
    now = {path.name: path.stat().st_mtime_ns for path in batches.glob("*.safetensors")}
    assert kept.items() <= now.items()


def worker_of(output: Path) -> int:
    """The process id of the gpu worker whose run writes to ``output``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                if b"gpu,reduce" in (entry / "cmdline").read_bytes() and str(output) in environment:
                    return int(entry.name)
            except OSError:
                pass  # it has just ended
    raise AssertionError(f"no gpu worker writes to {output}")


@pytest.mark.slow
def test_a_worker_that_is_killed_under_generate_is_replaced_and_the_bytes_are_right(svf, config, tmp_path):
    calm = svf("generate", "--config", config, "--output", "calm")
    assert calm.status == 0, calm.err
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from factory.cli import main; main()"]
    words = ["generate", "--config", str(config), "--output", str(out)]
    running = subprocess.Popen([*command, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        batches = out / "runs" / "batches"
        while running.poll() is None and not (batches.is_dir() and any(batches.glob("*.safetensors"))):
            time.sleep(0.02)
        first = worker_of(out)
        os.kill(first, signal.SIGKILL)
        said, _ = running.communicate(timeout=240)
    finally:
        running.kill()
        running.wait()

    assert running.returncode == 0, said
    assert "killed by signal 9: starting another" in (out / "steering_vector_generation.log").read_text()
    for style in (STYLE, "creative_explorer"):
        one, two = (folder / "steering_vectors" / f"{style}.pt" for folder in (tmp_path / "calm", out))
        assert one.read_bytes() == two.read_bytes()
    assert processes_that_know(str(out)) == []


def test_a_style_that_cannot_be_made_fails_with_its_reasons_and_the_other_is_made(svf, config, tmp_path):
    # Given a dataset in which too many pairs are unusable
    dataset = tmp_path / "out" / "datasets" / f"{STYLE}_pairs.jsonl"
    dataset.parent.mkdir(parents=True)
    line = {
        "question": "Q?",
        "positive_prompt": "",
        "positive_response": "same",
        "negative_prompt": "",
        "negative_response": "same",
        "style": STYLE,
    }
    dataset.write_text("".join(json.dumps(line | {"pair_id": str(n)}) + "\n" for n in range(4)))

    made = svf("generate", "--config", config, "--output", "out", "--limit", 4)

    assert made.status == 1
    assert "4 of 4 pairs failed (4 x identical)" in made.out.replace("\n", " ")
    assert not (tmp_path / "out" / "steering_vectors" / f"{STYLE}.pt").exists()
    assert (tmp_path / "out" / "steering_vectors" / "creative_explorer.pt").is_file()


def hand_over(old: redis.Redis, new: redis.Redis) -> None:
    """Make ``old``, from which ``new`` copies, a replica of ``new``: what a managed broker does when it fails over."""
    until(lambda: new.info("replication").get("master_link_status") == "up")
    new.replicaof("no", "one")
    old.replicaof("127.0.0.1", new.connection_pool.connection_kwargs["port"])
    until(lambda: old.info("replication").get("master_link_status") == "up")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_broker_that_is_a_read_only_replica_for_seconds_ends_no_worker(svf, config, tmp_path):
    # Given workers on a broker with a replica, which know each other's password
    with running_broker(tmp_path / "one") as url, running_broker(tmp_path / "two") as other:
        ours, theirs = redis.Redis.from_url(url), redis.Redis.from_url(other)
        ours.config_set("masterauth", theirs.connection_pool.connection_kwargs["password"])
        theirs.config_set("masterauth", ours.connection_pool.connection_kwargs["password"])
        theirs.replicaof("127.0.0.1", ours.connection_pool.connection_kwargs["port"])
        environment = {
            "FACTORY_BROKER_URL": url,
            "FACTORY_CONFIG": str(config),
            "FACTORY_STORE": str(tmp_path / "store"),
            "FACTORY_GUARD_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
        }
        with running_crew(["gpu", "reduce"], tmp_path / "workers", environment) as crew:
            queues = ("_kombu.binding.gpu", "_kombu.binding.reduce")
            until(lambda: ours.exists(*queues) == 2, 90)

            # When the two change places, and back
            hand_over(ours, theirs)
            with pytest.raises(redis.ReadOnlyError):
                ours.set("a", 1)
            time.sleep(5)
            hand_over(theirs, ours)

            # Then the same workers make a run
            sent = svf("enqueue", "--config", config, "--limit", 10, "--json", **environment)
            run = json.loads(sent.out)["run"]
            watched = svf("watch", run, "--config", config, "--output", "out", **environment)
            assert watched.status == 0, watched.err
            assert not any(member.died for member in crew.members)
