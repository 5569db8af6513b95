"""``svf certify``: whether what a vector's certificate says holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.benchmark.outcome import BASES, right_answers_of
from factory.commands.counting import counting
from factory.commands.options import Job, config_option, hide_loading_bar, json_option, open_job, output_option
from factory.commands.prose import say
from factory.commands.tables import folded
from factory.errors import BenchmarkError, ConfigError, MissingExtra
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.figures import RightAnswers
from factory.evaluation.spec import EvaluationSpec
from factory.pairs.dataset import load_questions
from factory.pairs.styles import load_style
from factory.planning.specify import TASK_SEED, held_out_file

if TYPE_CHECKING:
    from factory.benchmark.condition import Condition
    from factory.benchmark.run import Bench
    from factory.evaluation.certificate import Certificate, CertifiedTask, Held
    from factory.vector.vector import SteeringVector


@click.command()
@click.argument("file", metavar="VECTOR", type=click.Path(path_type=Path))
@click.option(
    "--questions", type=click.Path(path_type=Path), help="File with the questions [default: the configured one]."
)
@click.option("--task", "sources", multiple=True, help="File with the items of one of its tasks; repeatable.")
@click.option("--anew", is_flag=True, help="Ask the model everything again: take no answer from the store.")
@config_option
@output_option
@json_option
def certify(
    file: Path,
    *,
    questions: Path | None,
    sources: tuple[str, ...],
    anew: bool,
    config_file: Path | None,
    output: Path,
    as_json: bool,
) -> int:
    """Measure VECTOR again as its certificate says, and say which of its figures hold.

    Answers that lie in the store (under --output) are read from there and scored again; others the
    model gives anew. Vector, questions, style, settings, seeds, model revision and versions are compared
    too, and so is what the file states. Tasks with checkable answers are asked again under the conditions
    that need nothing but the vector's file; what is not measured again is named. The exit status is 1 if
    anything does not hold.
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
    found, unmeasured = _measure(vector, certificate, job, spec, stated=stated, anew=anew, sources=sources)
    unmeasured += _never_again(stated, certificate)
    lines = compare_certificates(certificate, found)
    claimed = figures_of(stated)
    lines += [Held(f"stated.{name}", value, claimed.get(name)) for name, value in certificate.figures.items()]
    if as_json:
        held = [asdict(line) | {"holds": line.holds} for line in lines]
        said = {"holds": all(line.holds for line in lines), "entries": held, "not_measured_again": unmeasured}
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        _show(vector.style_name, lines, unmeasured)
    return 0 if all(line.holds for line in lines) else 1


def _never_again(stated: Evaluation, certificate: Certificate) -> list[str]:
    """What the file states and no certificate can hold."""
    return [
        *(["the judge's scores"] if stated.judged else []),
        *(["the mean from which the vector was learned"] if "mean" in stated.measured else []),
        *(["tasks with examples in context"] if certificate.tasks else []),
    ]


def _measure(
    vector: SteeringVector,
    certificate: Certificate,
    job: Job,
    spec: EvaluationSpec,
    *,
    stated: Evaluation,
    anew: bool,
    sources: Sequence[str],
) -> tuple[Certificate, list[str]]:
    """The certificate made anew, and which tasks could not be asked again: of these the ``stated`` figures stay."""
    from factory.benchmark.condition import baselines, steered
    from factory.benchmark.run import Bench, Budget
    from factory.configured import load_configured_target
    from factory.evaluation.certificate import certify_evaluation
    from factory.evaluation.examiner import Examiner, evaluate
    from factory.evaluation.probe import apply_cell
    from factory.evaluation.verdict import conclude
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
    again = TasksAgain()
    if certificate.tasks:
        bench = Bench(target, store, Budget(thought=spec.thinking_tokens))
        conditions = [*baselines(style), *steered(apply_cell(vector, evaluation.setting))]
        with console.status("asking its tasks again"):
            again = _ask_tasks(certificate.tasks, bench, conditions, [*sources, *job.settings.evaluation.tasks])
        right = [again.right.get(one.task, one) for one in stated.right_answers]
        evaluation = conclude(style, spec, done, evaluation.specificity, right)
    found = certify_evaluation(vector, style, spec, done, evaluation, tasks=again.certified)
    return found, again.unmeasured


@dataclass
class TasksAgain:
    """Tasks of a certificate, asked again: right answers by task, and which could not be asked, with why."""

    certified: list[CertifiedTask] = field(default_factory=list)
    right: dict[str, RightAnswers] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)


def _ask_tasks(
    tasks: Sequence[CertifiedTask], bench: Bench, conditions: Sequence[Condition], sources: Sequence[str]
) -> TasksAgain:
    """Put each task to the model again; of one whose items are not at hand the certified figures stay."""
    from factory.benchmark.certified import certify_task, find_again
    from factory.benchmark.paired import task_result

    again = TasksAgain()
    for certified in tasks:
        source = next((source for source in sources if Path(source).stem == certified.name), certified.name)
        try:
            task = find_again(certified, source, seed=TASK_SEED)
        except (BenchmarkError, MissingExtra) as error:
            again.unmeasured.append(f"task {certified.name}: {error}. Its file can be given with --task")
            again.certified.append(certified)
            continue
        result = task_result(task, {one.role: bench.examine(task, one) for one in conditions}, BASES)
        again.certified.append(certify_task(task, result).model_copy(update={"limit": certified.limit}))
        again.right |= {one.task: one for one in right_answers_of([result])}
    return again


def _show(style: str, lines: Sequence[Held], unmeasured: Sequence[str]) -> None:
    console = Console(highlight=False)
    for what in unmeasured:
        say(console, Text(f"not measured again: {what}", style="yellow"))
    failed = [line for line in lines if not line.holds]
    if not failed:
        say(console, Text.assemble((style, "bold"), f": all {len(lines)} entries of its certificate hold"))
        return
    said = f": {len(failed)} of {len(lines)} entries of its certificate do not hold"
    say(console, Text.assemble((style, "bold"), said))
    table = Table("", "certified", "found", box=None)
    for line in failed:
        table.add_row(Text(line.name), Text(str(line.certified)), Text(str(line.found)))
    console.print(folded(table))
