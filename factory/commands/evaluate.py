"""``svf evaluate``: whether vectors steer, measured on held-out questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from factory.commands.options import config_option, hide_loading_bar, json_option, open_job
from factory.config import Settings
from factory.plan import plan_evaluation
from factory.styles import Style, load_style

if TYPE_CHECKING:
    from factory.evaluate import Evaluation
    from factory.target import Target
    from factory.vector import SteeringVector


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
    strengths: tuple[float, ...],
    layer_sets: tuple[str, ...],
    limit: int | None,
    keep: bool,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Measure whether VECTORS steer, and write verdict and best setting into them.

    All questions are held out: no vector was made from them. The exit status is 1 if a vector has
    no effect.
    """
    from factory.vector import SteeringVector

    swept = {"strengths": list(strengths), "layer_sets": list(layer_sets), "limit": limit}
    settings = open_job(config_file).settings
    chosen = settings.evaluation.model_copy(update={key: value for key, value in swept.items() if value})
    settings = settings.model_copy(update={"evaluation": chosen})
    loaded = [SteeringVector.load(path) for path in vectors]
    styles = {vector.style_name: load_style(vector.style_name, settings.styles_dir) for vector in loaded}
    results = []
    for path, vector in zip(vectors, loaded, strict=True):
        evaluation, evaluated = _evaluate(vector, settings, styles)
        if not keep:
            _write(evaluated, path)
        results.append(evaluation)
    if as_json:
        click.echo(json.dumps([result.to_json() for result in results], ensure_ascii=False))
    else:
        _show(results)
    return 1 if any(result.verdict == "no effect" for result in results) else 0


def _evaluate(
    vector: SteeringVector, settings: Settings, styles: dict[str, Style]
) -> tuple[Evaluation, SteeringVector]:
    from dataclasses import replace

    from factory.evaluate import add_evaluation, specificity_of
    from factory.evaluate import evaluate as evaluate_vector
    from factory.store import Store

    console = Console(stderr=True)
    with console.status(f"loading {vector.model_name}"):
        target = _target(vector.model_name, settings)
    spec, store = plan_evaluation(settings), Store("memory://evaluation")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task(vector.style_name, total=len(spec.parts))
        evaluation, done = evaluate_vector(
            target, vector, styles[vector.style_name], spec, store=store, after=lambda part: bar.advance(row)
        )
    specificity = specificity_of(store.require_json(done["steered"]["answers"]), styles)
    evaluation = replace(evaluation, specificity=specificity)
    return evaluation, add_evaluation(vector, evaluation)


def _target(name: str, settings: Settings) -> Target:
    import torch

    from factory.target import load_target

    hide_loading_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    trusted = settings.trust_remote_code
    return load_target(
        name, settings.device, dtype=settings.dtype, quantize=settings.quantize, trust_remote_code=trusted
    )


def _write(vector: SteeringVector, path: Path) -> None:
    """Write the file, and its twin of the other format if there is one."""
    vector.save(path)
    for ending in (".pt", ".safetensors"):
        twin = path.with_suffix(ending)
        if twin != path and twin.exists():
            vector.save(twin)


def _show(results: Sequence[Evaluation]) -> None:
    console = Console(highlight=False)
    for result in results:
        table = Table("", "in the style", "95 %", "markers", "words", "distinct", "loops", "perplexity", box=None)
        for part, figures in result.measured.items():
            table.add_row(part, *_row(figures))
        console.print(f"\n[bold]{result.style}[/bold]: {result.verdict}, effect {result.effect:+.2f} {result.interval}")
        console.print(f"at {result.setting.describe()}; exact answers {_capability(result.capability)}")
        console.print(table)
        if result.advice:
            console.print(f"[yellow]{result.advice}[/yellow]")
    if len(results) > 1:
        matrix = Table("vector \\ markers", *(result.style for result in results), box=None)
        for result in results:
            matrix.add_row(result.style, *(f"{result.specificity[other.style]:.0%}" for other in results))
        console.print("\nshare of steered answers that show each style's markers", matrix)


def _row(figures: dict[str, Any]) -> list[str]:
    low, high = figures["interval"]
    perplexity = "" if figures["perplexity"] is None else f"{figures['perplexity']:.1f}"
    numbers = [f"{figures['markers']:.1f}", f"{figures['words']:.0f}", f"{figures['distinct_4grams']:.2f}"]
    return [f"{figures['share']:.0%}", f"{low:.0%}-{high:.0%}", *numbers, f"{figures['loops']:.0%}", perplexity]


def _capability(capability: dict[str, Any]) -> str:
    return f"{capability['unsteered']:.0%} right unsteered, {capability['steered']:.0%} steered"
