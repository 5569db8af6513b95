"""``svf benchmark``: what vectors do to right answers, on tasks with checkable answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.benchmark.outcome import BASES, SIGNIFICANT
from factory.commands.counting import counting
from factory.commands.options import Job, config_option, hide_loading_bar, json_option, open_job, output_option
from factory.commands.prose import say
from factory.commands.tables import folded
from factory.errors import VectorError
from factory.extras import require_target
from factory.files import shipped_file
from factory.pairs.dataset import dataset_path, load_pairs
from factory.pairs.heldout import asked_hashes
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import load_style

LEGEND = {  # what the columns of a table mean
    "letter": "right by the likeliest letter",
    "cut": "thoughts that never ended",
    "none": "answers without a result",
    "tokens": "generated per right answer",
    "to": "change of the share right, with McNemar's exact p (* below 0.05)",
}

if TYPE_CHECKING:
    from factory.benchmark.condition import Condition
    from factory.benchmark.item import Task
    from factory.benchmark.outcome import Comparison, Outcome, Share, TaskResult
    from factory.benchmark.run import Budget
    from factory.target.model import Target
    from factory.vector.vector import SteeringVector


@click.command()
@click.argument("vectors", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tasks",
    "-t",
    "names",
    multiple=True,
    default=("gsm_symbolic",),
    show_default=True,
    help="gsm_symbolic or another name of reasoning-gym, mmlu, or FILE.jsonl; repeat it or separate by commas.",
)
@click.option("--limit", type=click.IntRange(min=2), default=100, show_default=True, help="Items per task.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the items that are made or drawn.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens per answer [default: by task].")
@click.option("--max-thought-tokens", type=click.IntRange(min=0), default=1024, show_default=True)
@config_option
@output_option
@json_option
def benchmark(
    vectors: tuple[Path, ...],
    *,
    names: tuple[str, ...],
    limit: int,
    seed: int,
    max_new_tokens: int | None,
    max_thought_tokens: int,
    config_file: Path | None,
    output: Path,
    as_json: bool,
) -> int:
    """Hold VECTORS against the bare, the prompted and the few-shot model on tasks with checkable answers.

    Every condition gets the same items, so that each comparison is paired (McNemar). Answers are kept in
    the store: a benchmark that was interrupted goes on where it stopped.
    """
    require_target()
    from factory.benchmark.sources import load_task

    job = open_job(config_file, output)
    listed = [name for group in names for name in group.replace(",", " ").split()]
    tasks = [load_task(name, limit=limit, seed=seed) for name in listed]  # first: a mistyped name costs nothing
    from factory.benchmark.run import Budget
    from factory.vector.vector import SteeringVector

    loaded = {path: SteeringVector.load(path) for path in vectors}
    console = Console(stderr=True, highlight=False)
    tasks = _held_out(tasks, loaded, console)
    target = _load(loaded, job, console)
    conditions = _conditions(loaded, job)
    budget = Budget(max_new_tokens, max_thought_tokens)
    results = _run(target, tasks, conditions, job, budget, console=console)
    if as_json:
        click.echo(json.dumps([result.model_dump(mode="json") for result in results], ensure_ascii=False))
    else:
        _show(results)
    return 0


def _held_out(tasks: Sequence[Task], loaded: dict[Path, SteeringVector], console: Console) -> list[Task]:
    """The tasks without items that the vectors' pairs ask; says how many, or that it cannot be known."""
    asked: set[str] = set()
    for path, vector in loaded.items():
        hashes = asked_hashes(vector.metadata)
        if hashes is None:
            said = f"{path}: does not say which questions its pairs ask: whether they are in a task cannot be known"
            say(console, Text(said, style="yellow"))
        asked |= set(hashes or [])
    kept = [task.without(asked) for task in tasks]
    for task in kept:
        if task.left_out:
            said = f"{task.name}: left out {task.left_out} items, which the vectors' pairs ask"
            say(console, Text(said, style="yellow"))
    return kept


def _load(loaded: dict[Path, SteeringVector], job: Job, console: Console) -> Target:
    from factory.configured import load_configured_target

    models = {vector.model_name for vector in loaded.values()}
    if len(models) > 1:
        raise VectorError(f"the vectors are for {len(models)} models ({', '.join(sorted(models))}): give those of one")
    (name,) = models
    hide_loading_bar()
    with console.status(Text(f"loading {name}")):
        return load_configured_target(name, job.settings)


def _conditions(loaded: dict[Path, SteeringVector], job: Job) -> list[Condition]:
    """The bare model, then for each style the words and examples for it, then each vector and its random twin."""
    from factory.benchmark.condition import baselines, steered
    from factory.vector.steer import Steering

    names = {vector.style_name for vector in loaded.values()}
    of = {name: name if len(names) > 1 else "" for name in names}
    found: dict[str, Condition] = {}
    for name in sorted(names):
        style = load_style(name, job.settings.styles_dir)
        found |= {condition.name: condition for condition in baselines(style, _pairs(job.output, name), of=of[name])}
    for path, name in names_of(list(loaded)).items():
        vector = loaded[path]
        made = steered(Steering.recommended(vector), name, of=of[vector.style_name])
        found |= {condition.name: condition for condition in made}
    return list(found.values())


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What each vector is called: nothing where it is alone, its file's name, or its path where names are shared."""
    if len(paths) == 1:
        return {paths[0]: ""}
    stems = Counter(path.stem for path in paths)
    return {path: path.stem if stems[path.stem] == 1 and path.stem not in BASES else str(path) for path in paths}


def _pairs(output: Path, style: str) -> list[ContrastivePair]:
    """Pairs of the style to show as examples: the dataset of this output folder, else the one that was shipped."""
    own = dataset_path(output, style)
    for path in (own, shipped_file("datasets", own.name)):
        if path.is_file():
            return load_pairs(path)
    return []


def _run(
    target: Target,
    tasks: Sequence[Task],
    conditions: Sequence[Condition],
    job: Job,
    budget: Budget,
    *,
    console: Console,
) -> list[TaskResult]:
    from factory.benchmark.run import run_task

    results = []
    for task in tasks:
        with counting(console, f"{task.name}, answers", len(conditions) * len(task.items)) as gained:
            results.append(run_task(target, task, conditions, job.store, budget=budget, after=gained))
    return results


def _show(results: Sequence[TaskResult]) -> None:
    console, shown = Console(highlight=False), set[str]()
    for result in results:
        chosen = any(outcome.by_likelihood for outcome in result.outcomes)
        thinks = any(outcome.thoughts_cut for outcome in result.outcomes)
        table = Table(box=None, pad_edge=False)
        optional = [*(["letter"] if chosen else []), *(["cut"] if thinks else [])]
        for head in ["", "right", "95 %", *optional, "none", "tokens", "to unsteered", "to prompted"]:
            table.add_column(head)
        for outcome in result.outcomes:
            table.add_row(*_row(result, outcome, optional))
        console.print(Text(f"\n{result.task}: {result.n_items} items", style="bold"))
        console.print(folded(table))
        _show_random(console, result)
        shown |= {"none", "tokens", "to", *optional}
    legend = [f"{head}: {meaning}" for head, meaning in LEGEND.items() if head in shown]
    say(console, Text(f"\n{'. '.join(legend)}", style="dim"))


def _show_random(console: Console, result: TaskResult) -> None:
    """Each vector against the random one of its size: what is the style's doing, and not any push's."""
    for outcome in result.outcomes:
        found = result.comparison(outcome.condition, "random")
        if found:
            say(console, Text(f"{outcome.condition} against {found.base}: {_comparison(found)}"))


def _row(result: TaskResult, outcome: Outcome, optional: Sequence[str]) -> list[Text]:
    accuracy = outcome.accuracy
    more = {"letter": _share(outcome.by_likelihood), "cut": str(outcome.thoughts_cut)}
    cells = [
        outcome.condition,
        f"{accuracy.share:.0%}",
        f"{accuracy.low:.0%}-{accuracy.high:.0%}",
        *(more[name] for name in optional),
        str(outcome.unextracted),
        "" if outcome.tokens_per_right is None else f"{outcome.tokens_per_right:.0f}",
        *(_comparison(result.comparison(outcome.condition, role)) for role in ("unsteered", "prompted")),
    ]
    return [Text(cell) for cell in cells]


def _share(share: Share | None) -> str:
    return "" if share is None else f"{share.share:.0%}"


def _comparison(found: Comparison | None) -> str:
    if found is None:
        return ""
    mark = "*" if found.p < SIGNIFICANT else ""
    return f"{found.gain:+.0%} p {found.p:.2g}{mark}"
