"""Every command twice at once, in one folder: the second one ends well or with a sentence, and no file is damaged.

In a pipe of 60 columns, without colours, in a folder with brackets in its name.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from factory import cli
from factory.cluster.folder_lock import holding
from factory.pairs.styles import load_style
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.conftest import ROOT
from tests.evaluated import SWEEP, finish_run, make_run
from tests.hub import running_hub
from tests.vector.test_foreign import cache_steering_file

STYLE = "step_by_step_reasoning"
VECTOR = f"out/steering_vectors/{STYLE}.pt"
EVALUATE = f"evaluate {VECTOR}"
# Two that differ and would write the same file, and what the loser is told; one line: the same command twice.
TWICE: dict[str, tuple[str, str, str]] = {
    "init": ("init mine --style calm", "init mine --style wild", "mine/config.yaml exists already"),
    "import": (
        "import one/stepwise.pt --model MODEL --style foreign",
        "import two/stepwise.pt --model MODEL --style foreign",
        "foreign.pt exists already",
    ),
    "serve": (f"serve {VECTOR} --port PORT", "", "127.0.0.1:PORT cannot be had: address already in use"),
    "metrics": ("metrics --port PORT --output out", "", "127.0.0.1:PORT cannot be had: address already in use"),
    "evaluate": (f"{EVALUATE} --strength 1", f"{EVALUATE} --strength 9", ""),
    "watch": ("watch --output out", "", ""),
    "certify": (f"certify {VECTOR}", "", ""),
    "benchmark": (f"benchmark {VECTOR} --limit 2 --max-new-tokens 2", "", ""),
    "report": ("report --output out", "report --summary --output out", ""),
    "export": (f"export {VECTOR}", "", ""),
    "show": (f"show {VECTOR}", "", ""),
    "steer": (f"steer {VECTOR} -p Why? --max-new-tokens 2", "", ""),
    "push": (f"push {VECTOR} me/steps", "", ""),
    "pull": ("pull me/steps --output pulled", "", ""),
    "styles": ("styles", "", ""),
    "estimate": (f"estimate {STYLE} --output out", "", ""),
    "status": ("status --output out", "", ""),
    "enqueue": (f"enqueue {STYLE} --limit 4 --output queue", "", ""),
    "resume": ("resume --output queue", "", ""),
    "cancel": ("cancel --output queue", "", ""),
    "download": ("download MODEL", "", ""),
    "config": ("config", "", ""),
    "doctor": ("doctor --output out", "", ""),
}
ELSEWHERE = {"generate"}  # tests/cluster/test_embedded.py: the folder's lock, which is also that of resume --here


def test_every_command_is_tried():
    assert set(TWICE) | ELSEWHERE == set(cli.COMMANDS)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory, target_folder, target) -> Path:
    """A folder with a run that has ended, its outputs, and files of another program."""
    folder = tmp_path_factory.mktemp("twice") / "[red]"  # brackets are no markup
    folder.mkdir()
    ledger, settings = make_run(target_folder, folder / "out", Store(str(folder / "out" / "runs")), [STYLE])
    finish_run(ledger, settings)
    for name in ("one", "two"):
        (folder / name).mkdir()
        cache_steering_file(folder / name, target.shape)
    return folder


@pytest.fixture(scope="module")
def became(place, target_folder, tmp_path_factory, broker) -> dict[str, list[dict]]:
    """What each pair of commands said, and how it ended."""
    port = str(free_port())
    filled = {
        name: [(line or first).replace("MODEL", str(target_folder)).replace("PORT", port).split() for line in lines]
        for name, (first, second, _) in TWICE.items()
        for lines in [(first, second)]
    }
    order = ["watch", *(name for name in filled if name != "watch")]  # writes the vector that others take
    services = tmp_path_factory.mktemp("hub")
    (services / "steps").mkdir()
    with running_hub("me/steps", services / "steps") as hub:
        environment = {
            "FACTORY_TARGET_MODEL": str(target_folder),
            "FACTORY_DEVICE": "cpu",
            "FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS": "all",
            "FACTORY_BROKER_URL": f"{broker.rsplit('/', 1)[0]}/9",
            "FACTORY_EVALUATION__LIMIT": "2",
            "FACTORY_EVALUATION__CHOICE_LIMIT": "1",
            "FACTORY_EVALUATION__PROBE_LIMIT": "1",
            "FACTORY_EVALUATION__MAX_NEW_TOKENS": str(SWEEP.max_new_tokens),
            "HF_ENDPOINT": hub,
            "HF_HOME": str(services / "cache"),
            "HF_TOKEN": "hf_test",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "60",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
        }
        ended = subprocess.run(
            [sys.executable, "-m", "tests.commands.twice"],
            input=json.dumps([filled[name] for name in order]),
            cwd=place,
            env={name: text for name, text in os.environ.items() if not name.startswith("FACTORY_")} | environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=True,
        )
    return dict(zip(order, json.loads(ended.stdout), strict=True)) | {"port": [{"said": port}]}


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_the_second_of_two_at_once_ends_well_or_with_a_sentence(became, name):
    _, _, sentence = TWICE[name]
    both = became[name]
    for one in both:
        assert "Traceback" not in one["said"], one["said"]
        assert "error: unexpected" not in one["said"], one["said"]
        assert one["status"] not in (99, -9), one["said"]
        assert "\x1b" not in one["said"], one["said"]  # no terminal is there, and no colour wanted
        assert "…" not in one["said"], one["said"]  # nothing is cut
    if sentence:
        told = sentence.replace("PORT", became["port"][0]["said"])
        (loser,) = [one for one in both if one["status"] in (1, 2)]
        assert told in loser["said"], both
        assert len(loser["said"].strip().splitlines()) == 1
    else:
        first, second = both
        assert first["status"] == second["status"] != 2, both


@pytest.mark.slow
def test_what_two_wrote_at_once_is_whole_and_of_one_of_them(became, place):
    written = SteeringVector.load(place / VECTOR)
    twin = SteeringVector.load((place / VECTOR).with_suffix(".safetensors"))
    assert written.metadata == twin.metadata, "both files are of the same evaluation"
    assert len(list((place / "mine" / "styles").iterdir())) == 1, "one of the two has the folder"
    name = next((place / "mine" / "styles").iterdir()).stem
    assert load_style(name, place / "mine" / "styles").name == name
    assert f"styles: [{name}]" in (place / "mine" / "config.yaml").read_text()
    assert SteeringVector.load(place / "steering_vectors" / "foreign.pt").style_name == "foreign"
    assert not list(place.rglob("*.tmp"))


@pytest.mark.slow
def test_after_two_that_pulled_the_same_both_have_it(became, place):
    (vector,) = (place / "pulled").glob("*.safetensors")
    assert SteeringVector.load(vector).style_name == STYLE
    shutil.rmtree(place / "pulled")


def test_who_comes_second_into_an_output_folder_is_told_before_anything_else(here, said, target_folder, monkeypatch):
    monkeypatch.setenv("FACTORY_TARGET_MODEL", str(target_folder))
    monkeypatch.setenv("FACTORY_EXTRACTION_CONFIG__TARGET_LAYERS", "all")
    with holding(here / "out", "run one"):
        ended = said("generate", STYLE, "--output", "out")
    assert ended.status == 3, ended
    assert "'out' is in use by process" in ended.err
    assert "run one" in ended.err
    assert ended.out == ""
