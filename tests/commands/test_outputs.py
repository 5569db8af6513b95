"""The end of a run says where things lie and what to do next, whichever command saw it end."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from factory.commands.options import Job
from factory.commands.outputs import write_outputs
from factory.config import Configuration
from factory.run.progress import progress_of
from factory.store import Store
from tests.evaluated import finish_run, make_run

STYLE = "step_by_step_reasoning"


@pytest.fixture(scope="module")
def ended(target_folder, tmp_path_factory):
    """A run with its evaluation in a folder whose name needs quotes, and the job that made it."""
    output = tmp_path_factory.mktemp("out") / "my [b]vectors[/b]"
    ledger, settings = make_run(target_folder, output, Store(str(output / "runs")), [STYLE])
    finish_run(ledger, settings)
    return Job(Configuration(settings, {}, Path("own settings.yaml")), output), ledger


def test_the_end_of_an_evaluated_run_names_its_report_and_commands_that_can_be_pasted(ended, capsys):
    job, ledger = ended
    console = Console(highlight=False, width=40)
    assert write_outputs(job, ledger, [progress_of(ledger.of(STYLE))], console) == 0
    lines = capsys.readouterr().out.splitlines()
    vector = job.output / "steering_vectors" / f"{STYLE}.pt"
    assert f"{STYLE}: 6 pairs -> {vector}" in lines
    (page,) = [line.removeprefix("report: ") for line in lines if line.startswith("report: ")]
    assert Path(page).is_file()
    commands = [shlex.split(line[line.index("svf ") :]) for line in lines if ": svf " in line]
    own = ["--config", "own settings.yaml"]
    assert commands == [
        ["svf", "steer", str(vector), "-p", "...", *own],
        ["svf", "serve", str(vector.parent), *own],
    ]


def test_a_failed_style_ends_with_its_message_as_it_is_and_status_1(ended, capsys):
    job, ledger = ended
    failed = replace(progress_of(ledger.of(STYLE)), state="failed", message="no pair [b]could[/b] be read")
    assert write_outputs(job, ledger, [failed], Console(highlight=False, width=40)) == 1
    out = capsys.readouterr().out
    assert out == f"{STYLE}: no pair [b]could[/b] be read\n"
