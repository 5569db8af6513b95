"""``svf evaluate``: whether vectors steer, measured on held-out questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.cluster.folder_lock import writing_alone
from factory.commands.counting import counting
from factory.commands.options import Job, config_option, hide_loading_bar, json_option, open_job
from factory.commands.prose import say
from factory.commands.tables import folded
from factory.config import Settings
from factory.errors import ConfigError
from factory.evaluation.agreement import describe_judging
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.figures import Capability, StateFigures
from factory.evaluation.judged import AnswerJudge, count_compared, count_judged
from factory.evaluation.spec import EvaluationSpec
from factory.pairs.dataset import load_questions
from factory.pairs.heldout import asked_hashes, find_hashed
from factory.pairs.styles import Style, load_style
from factory.planning.specify import as_learned, held_out_file, plan_evaluation, plan_teacher
from factory.run.export import renew_sam_assets
from factory.run.spec import new_run_id
from factory.teacher.client import Teacher
from factory.teacher.connection import open_client
from factory.teacher.judge import COMPARISON, RUBRIC, judge_spec
from factory.teacher.limits import Pace
from factory.teacher.replies import Payer
from factory.teacher.spending import require_price, worst_case
from factory.vector.learned import is_learned

if TYPE_CHECKING:
    from factory.vector.vector import SteeringVector


PASSED = {True: "+", False: "-", None: "?"}  # a rule of the verdict, on the terminal


@click.command()
@click.argument("vectors", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--strength", "strengths", type=float, multiple=True, help="Strength of the sweep; repeatable.")
@click.option("--layers", "layer_sets", multiple=True, help='Layer set of the sweep, such as "8-29"; repeatable.')
@click.option("--limit", type=click.IntRange(min=2), help="Held-out questions to measure on.")
@click.option("--keep", is_flag=True, help="Leave the files as they are: do not write the verdict into them.")
@config_option
@json_option
def evaluate(
    vectors: tuple[Path, ...],
    *,
    strengths: tuple[float, ...],
    layer_sets: tuple[str, ...],
    limit: int | None,
    keep: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Measure whether VECTORS steer, and write verdict and best setting into them.

    The vector's twin of the other format is written too, and its copy for the agent SAM.
    Questions that a vector's pairs ask are not held out, and are left out. With
    evaluation.judge_model a judge at the teacher's endpoint scores the answers beside the style's
    markers. The exit status is 1 if a vector has no effect.
    """
    from factory.vector.vector import SteeringVector

    job = open_job(config_file)
    swept = {"strengths": list(strengths), "layer_sets": list(layer_sets), "limit": limit}
    settings = job.settings
    chosen = settings.evaluation.model_copy(update={key: value for key, value in swept.items() if value})
    settings = settings.model_copy(update={"evaluation": chosen})
    away = [str(path) for path in vectors if not keep and not path.is_file()]
    loaded = [SteeringVector.load(path) for path in vectors]
    if away:
        raise ConfigError(f"{', '.join(away)}: no file into which a verdict could be written. Name the file, or --keep")
    styles = {vector.style_name: load_style(vector.style_name, settings.styles_dir) for vector in loaded}
    specs = [_spec_of(vector, settings, strengths) for vector in loaded]  # refuses before any is done
    results = []
    judge = _open_judge(job, settings, len(vectors))
    for path, vector, spec in zip(vectors, loaded, specs, strict=True):
        evaluation, evaluated = _evaluate(vector, spec, settings, styles, judge)
        if not keep:
            folder = path.resolve().parent
            with writing_alone(folder):
                _write(evaluated, path)
                for assets in (folder, folder.parent / settings.output_config.sam_assets_dir):
                    renew_sam_assets(styles[vector.style_name], vector, evaluated, assets)
        results.append(evaluation)
    if as_json:
        click.echo(json.dumps([result.to_json() for result in results], ensure_ascii=False))
    else:
        _show(results)
    return 1 if any(result.verdict == "no effect" for result in results) else 0


def _spec_of(vector: SteeringVector, settings: Settings, strengths: Sequence[float]) -> EvaluationSpec:
    """How a vector is evaluated. A learned one is tried around its own strength, or at ``strengths``."""
    without_rounds = settings.learning.model_copy(update={"rounds": 0})  # whatever a run here would learn
    settings = settings.model_copy(update={"learning": without_rounds})
    spec = plan_evaluation(settings, _asked_by(vector, settings))
    return as_learned(spec, strengths or settings.learning.strengths) if is_learned(vector) else spec


def _open_judge(job: Job, settings: Settings, n_vectors: int) -> Teacher | None:
    """The judge, if there is one: its replies are kept in the store, like the teacher's.

    Raises:
        ConfigError: it could cost more than max_cost_usd. No one counts the money of a process that is
            alone, so it is asked before.
        TeacherRefused: there is no key for its endpoint.
    """
    spec = plan_evaluation(settings)
    if spec.judge_model is None:
        return None
    asked = judge_spec(plan_teacher(settings), spec.judge_model)
    require_price(asked, settings.max_cost_usd)
    question, answer = max((*spec.questions, *spec.choice_questions), key=len), "x" * 8 * spec.max_new_tokens
    n_scored, n_compared = n_vectors * count_judged(spec), n_vectors * count_compared(spec)
    calls = {RUBRIC + question + answer: n_scored, COMPARISON + question + answer + answer: n_compared}
    most = sum(n * (worst_case(asked, asked.model, prompt) or 0.0) for prompt, n in calls.items())
    if settings.max_cost_usd is not None and most > settings.max_cost_usd:
        raise ConfigError(
            f"the judge {asked.model!r} could cost ${most:.4f} for {n_scored} scores and {n_compared} comparisons, "
            f"max_cost_usd is ${settings.max_cost_usd:g}: raise it, or lower evaluation.limit, cells or "
            "max_response_tokens"
        )
    client = open_client(asked.base_url, settings.api_key_env, settings.answer_timeout)
    rate = settings.calls_per_minute
    pace = Pace(60 / rate if rate else 0.0)
    return Teacher(asked, client, job.store, Payer(new_run_id(), "", 0), pace=pace)


def _evaluate(
    vector: SteeringVector, spec: EvaluationSpec, settings: Settings, styles: dict[str, Style], judge: Teacher | None
) -> tuple[Evaluation, SteeringVector]:
    from factory.configured import load_configured_target
    from factory.evaluation.certificate import certify_evaluation
    from factory.evaluation.examiner import Examiner
    from factory.evaluation.examiner import evaluate as evaluate_vector
    from factory.evaluation.verdict import add_evaluation, specificity_of
    from factory.store import Store

    hide_loading_bar()
    console = Console(stderr=True)
    store = Store("memory://evaluation")
    with console.status(f"loading {vector.model_name}"):
        target = load_configured_target(vector.model_name, settings)
    with counting(console, f"{vector.style_name}, parts", len(spec.parts)) as gained:
        style = styles[vector.style_name]
        scorer = AnswerJudge(judge, style, settings.max_concurrent_calls) if judge else None
        examiner = Examiner(target, vector, style, spec, store, scorer)
        evaluation, done = evaluate_vector(examiner, after=lambda part: gained(1))
    specificity = specificity_of(store.require_json(done.states["steered"].answers), styles)
    evaluation = evaluation.model_copy(update={"specificity": specificity})
    if judge:
        console.print(f"judge {judge.spec.model}: ${done.cost_usd:.4f}")
    certificate = certify_evaluation(vector, style, spec, done, evaluation)
    return evaluation, add_evaluation(vector, evaluation, certificate)


def _asked_by(vector: SteeringVector, settings: Settings) -> list[str]:
    """Questions of the held-out file that the vector's pairs ask; says how many, or that it cannot be known."""
    console = Console(stderr=True)
    hashes = asked_hashes(vector.metadata)
    questions = load_questions(held_out_file(settings))
    asked = find_hashed(questions, hashes or [])
    if hashes is None:
        said = "does not say which questions its pairs ask: whether these are held out cannot be known"
        say(console, Text(f"{vector.style_name}: the vector {said}", style="yellow"))
    if asked:
        said = f"left out {len(asked)} of {len(questions)} held-out questions, which the vector's pairs ask"
        say(console, Text(f"{vector.style_name}: {said}", style="yellow"))
    return asked


def _write(vector: SteeringVector, path: Path) -> None:
    """Write the file, and its twin of the other format if there is one."""
    vector.save(path)
    for ending in (".pt", ".safetensors"):
        twin = path.with_suffix(ending)
        if twin != path and twin.exists():
            vector.save(twin)


def _show(results: Sequence[Evaluation]) -> None:
    from factory.evaluation.verdict import NOT_MEASURED

    console = Console(highlight=False)
    for result in results:
        table = Table("", "in the style", "95 %", "markers", "words", "distinct", "loops", "perplexity", box=None)
        for part, figures in result.measured.items():
            table.add_row(part, *_row(figures))
        effect = "" if result.verdict == NOT_MEASURED else _effect(result)
        console.print(Text.assemble("\n", (result.style, "bold"), f": {result.verdict}{effect}"), soft_wrap=True)
        say(console, f"at {result.setting.describe()}; exact answers {_capability(result.capability)}")
        console.print(folded(table))
        for check in result.checks:
            say(console, Text(f"{PASSED[check.passed]} {check.name}: {check.said}"))
        _show_judged(console, result)
        if result.advice:
            say(console, Text(result.advice, style="yellow"))
    if len(results) > 1:
        matrix = Table("vector \\ markers", *(result.style for result in results), box=None)
        for result in results:
            matrix.add_row(result.style, *(f"{result.specificity[other.style]:.0%}" for other in results))
        console.print("\nshare of steered answers that show each style's markers", folded(matrix))


def _effect(result: Evaluation) -> str:
    low, high = result.interval
    return f", effect {result.effect:+.2f} [{low:+.2f}, {high:+.2f}]"


def _show_judged(console: Console, result: Evaluation) -> None:
    """A judge's scores beside the markers', if one was asked."""
    if not result.judged:
        return
    table = Table("by the judge", "style", "coherence", "answers", "unreadable", box=None)
    for part, scores in result.judged.items():
        if scores.failed is not None:
            table.add_row(part, Text(scores.failed))
        else:
            means = ("" if mean is None else f"{mean:.0f}" for mean in (scores.style, scores.coherence))
            table.add_row(part, *means, str(scores.n), str(scores.unreadable))
    console.print(folded(table))
    for said in describe_judging(result):
        say(console, said)


def _row(figures: StateFigures) -> list[str]:
    low, high = figures.interval
    perplexity = "" if figures.perplexity is None else f"{figures.perplexity:.1f}"
    numbers = [f"{figures.markers:.1f}", f"{figures.words:.0f}", f"{figures.distinct_4grams:.2f}"]
    return [f"{figures.share:.0%}", f"{low:.0%}-{high:.0%}", *numbers, f"{figures.loops:.0%}", perplexity]


def _capability(capability: Capability) -> str:
    return f"{capability.unsteered:.0%} right unsteered, {capability.steered:.0%} steered"
