"""Figures: drawn in the report's style, which nobody else's figures get."""

import subprocess
import sys

import matplotlib
import pytest

from factory.report import figures
from tests.conftest import ROOT

UNTOUCHED = """
import matplotlib
before = dict(matplotlib.rcParams)
import factory.report.page
assert dict(matplotlib.rcParams) == before
"""
DRAWN = {
    "convergence": lambda: figures.convergence_figure("one", [(8, 0.5), (16, 0.8)], 0.7),
    "agreement": lambda: figures.agreement_figure("one", [0, 0, 3, 5]),
    "matrix": lambda: figures.matrix_figure("one", "Cosines", ["a"], ["a", "b"], [[1.0, 0.2]]),
}


def test_importing_the_report_leaves_matplotlibs_settings_alone():
    subprocess.run([sys.executable, "-c", UNTOUCHED], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_the_reports_style_whatever_the_settings_around_it(name):
    with matplotlib.rc_context({"svg.fonttype": "path", "text.color": "red", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        svg = DRAWN[name]()
        assert dict(matplotlib.rcParams) == before
    assert svg == DRAWN[name]()
    assert "<text" in svg, "text stays text"
    assert "currentColor" in svg, "text takes the page's colour"
    assert "#ff0000" not in svg
    assert figures.INK not in svg


def test_every_figure_is_drawn_in_the_style():
    bare = [
        name for name in dir(figures) if name.endswith("_figure") and not hasattr(getattr(figures, name), "__wrapped__")
    ]
    assert not bare
