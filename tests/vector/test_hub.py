"""Vectors and models at a hub: pushed, pulled, loaded by revision, and refused early where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants

from factory.errors import TargetError
from factory.hub import find_problem, is_repository
from factory.target.download import require_model
from factory.target.loading import load_target
from factory.vector.vector import SteeringVector
from tests.hub import COMMIT, commit_of, running_hub

NOBODY = "http://127.0.0.1:9"
COMMANDS = """
import sys
from factory.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["svf", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print("status", ended.code, flush=True)
"""


def say(folder, address, *lines, **environment):
    """Commands in one process of its own: the hub's client reads its address once."""
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        check=False,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | hub | environment,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.stdout, ended.stderr


@pytest.fixture
def vector(tmp_path, target):
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(target.n_layers, *target.shape, generator=generator)
    made = SteeringVector("calm", tensor, 2 * tensor, list(range(target.n_layers)), target.name)
    made.save(tmp_path / "v.pt")
    return made


def test_a_vector_is_pushed_with_its_card_and_comes_back_by_branch_commit_and_name(vector, tmp_path):
    home = tmp_path / "hub" / "calm"
    home.mkdir(parents=True)
    with running_hub("lab/calm", home, key="hf_secret") as address:
        out, err = say(
            tmp_path,
            address,
            "push v.pt lab/calm",
            "push v.pt lab/calm@v1",
            "pull lab/calm@v1 --output branch",
            f"pull lab/calm@{commit_of('v1')} --output commit",
            "pull lab/calm --output main",
            "show lab/calm@v1",
            "pull lab/calm@v2",
            "pull lab/nothing",
            HF_TOKEN="hf_secret",
        )
        refused_out, refused = say(tmp_path, address, "push v.pt lab/calm", HF_TOKEN="hf_other")
    assert [line for line in out.splitlines() if line.startswith("status")] == ["status 0"] * 6 + ["status 2"] * 2, err
    assert f"/commit/{COMMIT}" in out
    for place in ("branch", "commit", "main"):
        assert SteeringVector.load(tmp_path / place / "calm.safetensors") == vector
        assert "steering vector for" in (tmp_path / place / "calm.md").read_text()
    assert "base_model" in (home / "README.md").read_text()
    assert "has no lab/nothing" in err
    assert "status 2" in refused_out
    assert "HF_TOKEN" in refused
    assert "hf_" not in (out + err + refused).replace("hf_hub", "").replace("HF_", "")


def test_a_hub_that_does_not_answer_is_named_before_any_worker_starts_with_two_ways_out(svf, tmp_path):
    said = svf("generate", "--limit", 2, HF_ENDPOINT=NOBODY, HF_HOME=str(tmp_path / "cache"))
    assert said.status == 2
    for words in ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", NOBODY, "a folder", "smollm2-135m-instruct"):
        assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert not (tmp_path / "steering_vector_generation.log").exists()


def test_a_library_s_user_is_told_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    with pytest.raises(TargetError, match=r"cannot be reached.*Two ways out"):
        load_target("lab/nothing")
    with pytest.raises(TargetError, match="does not exist"):
        load_target(str(tmp_path / "nothing"))


def test_a_hub_is_asked_only_for_what_is_not_here(monkeypatch, tmp_path, target_folder):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    require_model(str(target_folder))
    require_model("smollm2-135m-instruct")
    (tmp_path / "files").mkdir()
    with running_hub("lab/model", tmp_path / "files") as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        require_model("lab/model")
        assert find_problem("lab/model@main") == ""
        assert "has no lab/other, or it is private" in find_problem("lab/other")


def test_names_of_repositories_are_told_from_paths():
    for name in ("lab/calm", "lab/calm@v1", "lab/calm@refs/pr/1", "a-b/c.d_e"):
        assert is_repository(name), name
    for name in ("calm", "./a/b", "a/b/c", "/a/b", "../b", "lab/calm@", "s3://a/b", "a b/c", ""):
        assert not is_repository(name), name
