"""``svf certify``: whether what a vector's certificate says holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.commands.counting import counting
from factory.commands.options import Job, config_option, hide_loading_bar, json_option, open_job, output_option
from factory.errors import ConfigError
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.spec import EvaluationSpec
from factory.pairs.dataset import load_questions
from factory.pairs.styles import load_style
from factory.planning.specify import held_out_file

if TYPE_CHECKING:
    from factory.evaluation.certificate import Certificate, Held
    from factory.vector.vector import SteeringVector


@click.command()
@click.argument("file", metavar="VECTOR", type=click.Path(path_type=Path))
@click.option(
    "--questions", type=click.Path(path_type=Path), help="File with the questions [default: the configured one]."
)
@click.option("--anew", is_flag=True, help="Ask the model everything again: take no answer from the store.")
@config_option
@output_option
@json_option
def certify(
    file: Path, *, questions: Path | None, anew: bool, config_file: Path | None, output: Path, as_json: bool
) -> int:
    """Measure VECTOR again as its certificate says, and say which of its figures hold.

    Answers that lie in the store (under --output) are read from there and scored again; others the
    model gives anew. Vector, questions, style, settings, seeds, model revision and versions are compared
    too, and so is what the file states. The exit status is 1 if anything does not hold.
    """
    from factory.evaluation.certificate import Certificate, Held, compare_certificates, figures_of, question_hash
    from factory.vector.vector import SteeringVector

    vector = SteeringVector.load(file)
    certificate, stated = Certificate.read(vector.metadata), Evaluation.read(vector.metadata)
    if certificate is None or stated is None:
        raise ConfigError(f"{str(file)!r} has no certificate: 'svf evaluate' measures the vector and writes one")
    job = open_job(config_file, output)
    texts = load_questions(questions or held_out_file(job.settings))
    spec = certificate.spec({question_hash(text): text for text in texts})
    found = _measure(vector, certificate, job, spec, anew=anew)
    lines = compare_certificates(certificate, found)
    claimed = figures_of(stated)
    lines += [Held(f"stated.{name}", value, claimed.get(name)) for name, value in certificate.figures.items()]
    if as_json:
        held = [asdict(line) | {"holds": line.holds} for line in lines]
        click.echo(json.dumps({"holds": all(line.holds for line in lines), "entries": held}, ensure_ascii=False))
    else:
        _show(vector.style_name, lines)
    return 0 if all(line.holds for line in lines) else 1


def _measure(
    vector: SteeringVector, certificate: Certificate, job: Job, spec: EvaluationSpec, *, anew: bool
) -> Certificate:
    from factory.configured import load_configured_target
    from factory.evaluation.certificate import certify_evaluation
    from factory.evaluation.examiner import Examiner, evaluate
    from factory.store import Store

    hide_loading_bar()
    console = Console(stderr=True)
    style = load_style(vector.style_name, job.settings.styles_dir)
    with console.status(f"loading {vector.model_name}"):
        target = load_configured_target(vector.model_name, job.settings)
    days = [place.date for place in certificate.environments if place.date]
    target = replace(target, date=days[0]) if days else target
    store = Store("memory://certificate") if anew else job.store
    with counting(console, f"{vector.style_name}, parts", len(spec.parts)) as gained:
        examiner = Examiner(target, vector, style, spec, store)
        evaluation, done = evaluate(examiner, after=lambda part: gained(1))
    return certify_evaluation(vector, style, spec, done, evaluation)


def _show(style: str, lines: Sequence[Held]) -> None:
    console = Console(highlight=False)
    failed = [line for line in lines if not line.holds]
    if not failed:
        console.print(Text.assemble((style, "bold"), f": all {len(lines)} entries of its certificate hold"))
        return
    said = f": {len(failed)} of {len(lines)} entries of its certificate do not hold"
    console.print(Text.assemble((style, "bold"), said))
    table = Table("", "certified", "found", box=None)
    for line in failed:
        table.add_row(Text(line.name), Text(str(line.certified)), Text(str(line.found)))
    console.print(table)
