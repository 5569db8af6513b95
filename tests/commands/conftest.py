"""The terminal in this very process: quick, for what needs no process of its own."""

import os
import sys

import pytest

from factory import cli
from tests.conftest import Said


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the current one; the environment comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def said(here, monkeypatch, capfd):
    """Run ``svf`` here, in this process: what it says and how it ends."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["svf", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run
