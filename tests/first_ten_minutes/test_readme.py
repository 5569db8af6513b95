"""The README, walked line by line in a fresh environment, as somebody does who has never seen the project.

Every line of every ``bash`` block is run as it stands, in order, and what it says is held against
:data:`SAID`; a line that this table does not know fails. The machine is a small one: a pair is
read after one example, and fewer questions measure each vector than the README's figures are from.
``REUSED_VENV=.venv pytest -s ...`` spends no time on a fresh environment, and shows what is said.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from factory.cluster.embedded import running_broker
from tests.conftest import ROOT, STYLES
from tests.endpoint import draft_and_answers, running_endpoint
from tests.hub import running_hub
from tests.programs import running_program

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1800)]
LEFT_OUT = (".git", ".venv*", "out", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "runs")
README = (ROOT / "README.md").read_text(encoding="utf-8")
REUSED = os.environ.get("REUSED_VENV")  # folder of an environment that stands in for a fresh one: minutes less
SMALL = {
    "FACTORY_EXTRACTION_CONFIG__N_SHOTS": "1",
    "FACTORY_LEARNING__ROUNDS": "1",
    "FACTORY_EVALUATION__LIMIT": "2",
    "FACTORY_EVALUATION__CHOICE_LIMIT": "1",
    "FACTORY_EVALUATION__PROBE_LIMIT": "1",
    "FACTORY_EVALUATION__CELLS": "1",
    "FACTORY_EVALUATION__STRENGTHS": "[4]",
    "FACTORY_EVALUATION__LAYER_SETS": "[all]",
    "FACTORY_EVALUATION__MAX_NEW_TOKENS": "16",
}
ON_THE_CLUSTER = {"FACTORY_TARGET_MODEL": "smollm2-135m-instruct", "FACTORY_LOAD_IN_8BIT": "false"}
SIDE_BY_SIDE = ("unsteered", "steered", "prompted")

# How a line begins -> patterns of what it says.
SAID: dict[str, tuple[str, ...]] = {
    "make demo": (
        r"starter pairs",
        r"step_by_step_reasoning: 48 pairs -> ",
        r"report: ",
        r"to compare answers: svf steer",
    ),
    ".venv/bin/svf steer": SIDE_BY_SIDE,
    "svf serve": (r'"step_by_step_reasoning"|step_by_step_reasoning',),
    "svf push": (r"/commit/", r"svf steer me/steps"),
    "svf steer me/steps@main": SIDE_BY_SIDE,
    "svf generate --config config_cpu.yaml": (r"3 styles, 48 pairs", r"16 pairs -> ", r"finished in \d+ s"),
    "svf show": (*STYLES, r"30 layers x 3 KV heads x 64", r"cosine "),
    "svf benchmark": (r"gsm_symbolic", r"McNemar|paired|p ="),
    "svf init": (r"wrote it: \d+ tokens", r"wrote mine/config.yaml", r"svf generate"),
    "cd mine && svf estimate": (r"friendly +24 ",),
    "svf generate": (r"friendly: \d+ pairs -> ",),
    "celery -A factory worker -Q teacher": (r"queues teacher: 32 at a time",),
    "celery -A factory worker -Q gpu": (r"queues gpu: 1 at a time",),
    "celery -A factory worker -Q reduce": (r"queues reduce: 2 at a time",),
    "svf enqueue": (r"^\d{8}-\d{6}-[0-9a-f]{4}", r"svf watch \d{8}-"),
}


def blocks_of(readme: str) -> list[list[str]]:
    """The commands of each ``bash`` block, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    lines = [[re.sub(r"(?:^|\s+)# .*", "", line) for line in block.splitlines()] for block in blocks]
    return [[line for line in block if line.strip()] for block in lines]


def lines_of(readme: str) -> list[str]:
    """The commands of all blocks."""
    return [line for block in blocks_of(readme) for line in block]


def folder_after(line: str, folder: Path) -> Path:
    """Where a shell stands that ran ``line`` in ``folder``."""
    moved = re.match(r"cd (\S+)", line)
    return folder / moved[1] if moved else folder


def expected_of(line: str) -> tuple[str, ...]:
    """What the longest matching beginning says of a line."""
    known = [begin for begin in SAID if line.startswith(begin)]
    assert known, f"the README's line {line!r} is not checked: add it to SAID"
    return SAID[max(known, key=len)]


def test_every_command_of_the_readme_is_checked_and_no_other():
    lines = lines_of(README)
    for line in lines:
        expected_of(line)
    idle = [begin for begin in SAID if not any(line.startswith(begin) for line in lines)]
    assert not idle


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, without anything that was made in it."""
    folder = tmp_path_factory.mktemp("first") / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if REUSED:
        (folder / ".venv").symlink_to(Path(REUSED).resolve())
        for source in ("pyproject.toml", "constraints.txt"):
            os.utime(folder / source, (0, 0))  # make finds what it installed newer, and leaves it alone
    return folder


@pytest.fixture(scope="module")
def machine(checkout, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment: a teacher, a hub and a broker on loopback, and nothing of this machine's settings."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "steps").mkdir()
    with ExitStack() as services:
        endpoint = services.enter_context(running_endpoint())
        endpoint.answer = draft_and_answers
        hub = services.enter_context(running_hub("me/steps", folder / "steps"))
        broker = services.enter_context(running_broker(folder / "broker"))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FACTORY_", "PYTHON", "VIRTUAL_ENV")) or name == "FACTORY_CACHE_DIR"
        }
        yield (
            inherited
            | SMALL
            | {
                "PATH": f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}",  # what 'source .venv/bin/activate' does
                "FACTORY_BASE_URL": endpoint.base_url,
                "FACTORY_BROKER_URL": broker,
                "HF_ENDPOINT": hub,
                "HF_HOME": str(folder / "hub-cache"),
                "HF_TOKEN": "hf_test",
                **({"PYTHONPATH": str(checkout)} if REUSED else {}),
                "COLUMNS": "100",
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            }
        )


def run(line: str, checkout: Path, environment: dict[str, str]) -> str:
    """What a command says on either stream; it must end well."""
    began = time.monotonic()
    ended = subprocess.run(
        line,
        shell=True,
        executable="/bin/bash",
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    said = ended.stdout + ended.stderr
    print(f"\n[{time.monotonic() - began:4.0f} s] $ {line}\n{said}", flush=True)  # pytest -s: what a newcomer reads
    assert ended.returncode == 0, f"{line}\n{said}"
    return said


def hold(line: str, said: str) -> None:
    for pattern in expected_of(line):
        assert re.search(pattern, said, re.MULTILINE), f"{line}: no {pattern!r} in\n{said}"
    assert "Traceback" not in said, f"{line}\n{said}"
    assert "load_in_8bit" not in said, f"{line}\n{said}"


def until(found, patience: float = 600.0) -> None:
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.5)


def served(environment: dict[str, str], checkout: Path, line: str, folder: Path) -> str:
    """What a server answers whose command is ``line``; it is stopped then."""
    with running_program(["/bin/bash", "-c", f"cd {checkout} && exec {line}"], folder, environment):

        def models() -> str:
            try:
                with urllib.request.urlopen("http://127.0.0.1:8000/v1/models", timeout=5) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        until(models)
        answer = models()
    print(f"\n$ {line}\n{(folder / 'log').read_text()}\n{answer}", flush=True)
    return answer


def test_the_readme_does_what_it_says(checkout, machine, tmp_path):
    """A block is what somebody pastes into one shell; each begins in the checkout."""
    for block in blocks_of(README):
        folder = checkout
        for line in block:
            if line.startswith("celery"):
                continue  # these run for ever: walk_the_cluster starts them
            if line.startswith("svf serve"):
                hold(line, served(machine, folder, line, tmp_path / "server"))
            elif line.startswith("svf enqueue"):
                walk_the_cluster(line, folder, machine | ON_THE_CLUSTER, tmp_path)
            elif line.startswith("svf benchmark"):
                hold(line, run(f"{line} --limit 2 --max-new-tokens 16", folder, machine))
            else:
                hold(line, run(line, folder, machine))
            if line.startswith("make demo"):
                walk_the_program(checkout, machine)
                install_what_is_named_in_words(checkout, machine)
            folder = folder_after(line, folder)


def install_what_is_named_in_words(checkout: Path, machine: dict[str, str]) -> None:
    """The extras of which the README speaks, where the environment is a fresh one."""
    if not REUSED:
        extras = "python -m pip install --quiet --constraint constraints.txt -e '.[target,serve,benchmark]'"
        run(extras, checkout, machine)


def walk_the_program(checkout: Path, machine: dict[str, str]) -> None:
    """The Python program prints what stands below it, as far as numbers of another processor leave it so."""
    said = run(".venv/bin/python examples/first_vector.py", checkout, machine)
    printed = re.search(r"It prints:\n\n```text\n(.*?)```", README, re.DOTALL)[1]
    assert said.startswith(printed.splitlines()[0])
    assert printed.splitlines()[-1] in said


def walk_the_cluster(line: str, checkout: Path, machine: dict[str, str], folder: Path) -> None:
    """Workers of all queues, a run submitted and watched, in one shared store."""
    workers = [line for line in lines_of(README) if line.startswith("celery")]
    environment = machine | {"FACTORY_STORE": str(folder / "store")}
    with ExitStack() as crew:
        for at, worker in enumerate(workers):
            command = ["/bin/bash", "-c", f"cd {checkout} && exec {worker} -n {at}@%h -l info"]
            crew.enter_context(running_program(command, folder / f"worker-{at}", environment))
        logs = [folder / f"worker-{at}" / "log" for at in range(len(workers))]
        until(lambda: all("ready" in log.read_text() for log in logs))
        for worker, log in zip(workers, logs, strict=True):
            hold(worker, log.read_text())
        said = run(f"{line} --limit 4", checkout, environment)
        hold(line, said)
        watch = re.search(r"svf watch .*", said)[0]
        watched = run(watch, checkout, environment)
        assert "4 pairs -> steering_vectors/researcher_style.pt" in watched
