"""Where a run's artifacts lie in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factory.extraction.extract import render_batch
from factory.extraction.recipe import Recipe
from factory.run import artifacts
from factory.run.artifacts import differences_key


@pytest.fixture(scope="module")
def batch(target, starter_pairs):
    return render_batch(starter_pairs[:2], target, Recipe("response_mean"))


@pytest.mark.parametrize("what", [{"revision": "another"}, {"name": "another"}])
def test_another_model_s_differences_lie_elsewhere(what, batch, target):
    assert differences_key(batch, replace(target, **what), [0]) != differences_key(batch, target, [0])


def test_other_layers_and_other_texts_have_differences_of_their_own(batch, target, starter_pairs):
    other = render_batch(starter_pairs[2:4], target, Recipe("response_mean"))
    keys = [
        differences_key(batch, target, [0]),
        differences_key(batch, target, [0, 1]),
        differences_key(other, target, [0]),
    ]
    assert len(set(keys)) == 3


def test_code_that_reads_otherwise_finds_nothing_of_the_code_before(batch, target, monkeypatch):
    before = differences_key(batch, target, [0])
    assert differences_key(batch, target, [0]) == before
    monkeypatch.setattr(artifacts, "READING_VERSION", artifacts.READING_VERSION + 1)
    assert differences_key(batch, target, [0]) != before
