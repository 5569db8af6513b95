"""The library as its reader meets it: the examples in docstrings, the names in the docs, the programs."""

import doctest
import importlib
import re
import subprocess
import sys

import pytest
import torch

import factory
from factory import SteeringVector
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
def test_a_style_of_ones_own_shows_after_eight_pairs(tmp_path):
    plain, told = run("own_style.py", tmp_path).split("strength 3")
    assert "tale" in told
    assert "tale" not in plain


@pytest.mark.slow
def test_the_example_with_an_evaluated_vector_steers_generate_and_the_models_own_alike(tmp_path):
    rows = torch.randn(30, 3, 64, generator=torch.Generator().manual_seed(0))
    recommended = {"recommended_strength": 2.0, "recommended_layers": list(range(10, 20)), "recommended_positions": 2}
    vector = SteeringVector("noise", rows, rows, list(range(30)), "smollm2-135m-instruct", recommended)
    vector.save(tmp_path / "noise.pt")
    first, answers = run("evaluated_vector.py", tmp_path, tmp_path / "noise.pt").split("\n", maxsplit=1)
    assert first == "noise: 10 layers, strength 2, keys 0, positions 2"
    half = len(answers.strip()) // 2
    assert answers.strip()[:half].strip() == answers.strip()[half:].strip()


def run(name, folder, *arguments):
    """The output of an example."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
