"""The library as its reader meets it: the examples in docstrings, the names in the docs, the programs."""

import doctest
import importlib
import re
import subprocess
import sys

import pytest

import factory
from tests.conftest import ROOT


@pytest.mark.parametrize("module", ["factory.vector.vector", "factory.vector.steer", "factory.pipeline"])
def test_the_examples_in_docstrings_give_what_they_say(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried
    assert not failed


def test_the_library_page_lists_every_public_name():
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert set(factory.__all__) <= told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_programs_of_the_examples_run(tmp_path):
    first = run("first_vector.py", tmp_path)
    assert first.startswith("Step 1:")
    plain, told = run("own_style.py", tmp_path).split("strength 3")
    assert "tale" in told
    assert "tale" not in plain
    lines = run("evaluated_vector.py", tmp_path, tmp_path / "step_by_step_reasoning.pt").split("\n", maxsplit=1)
    assert lines[0] == "step_by_step_reasoning: 30 layers, strength 1, keys 0, positions 1"
    answer = lines[1].strip()
    half = len(answer) // 2
    assert answer[:half].strip() == answer[half:].strip(), "generate and a steered model.generate differ"


def run(name, folder, *arguments):
    """The output of an example; started in a folder that has the datasets."""
    if not (folder / "datasets").exists():
        (folder / "datasets").symlink_to(ROOT / "datasets")
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
