"""``svf steer``: ask a model with and without a vector."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from factory.commands.options import config_option, hide_loading_bar, json_option, open_job
from factory.errors import ConfigError, UnknownStyle

if TYPE_CHECKING:
    from pathlib import Path

    from factory.target.model import Target
    from factory.vector.vector import SteeringVector


ROOM = 90  # columns from which answers stand side by side; below, and in a pipe, one under the other


@dataclass(frozen=True)
class SideBySide:
    """What a prompt is asked with: nothing, the vector at each strength, and the style in words."""

    target: Target
    vector: SteeringVector
    strengths: Sequence[float | None]
    instruction: str | None
    max_new_tokens: int

    def ask(self, prompt: str) -> dict[str, str]:
        """The answers to ``prompt`` by what was asked with."""
        from factory.vector.steer import generate

        n = self.max_new_tokens
        answers = {"unsteered": generate(self.target, prompt, max_new_tokens=n)}
        for strength in self.strengths:
            name = "steered" if strength is None else f"strength {strength:g}"
            answers[name] = generate(self.target, prompt, vector=self.vector, strength=strength, max_new_tokens=n)
        if self.instruction:
            answers["prompted"] = generate(self.target, prompt, system=self.instruction, max_new_tokens=n)
        return answers


@click.command()
@click.argument("vector")
@click.option("--prompt", "-p", "prompts", multiple=True, help="Question to ask; repeatable.")
@click.option("--strength", "strengths", type=float, multiple=True, help="Repeatable [default: the recommended one].")
@click.option("--interactive", "-i", is_flag=True, help="Read questions from the terminal until it ends.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=120, show_default=True)
@config_option
@json_option
def steer(
    vector: str,
    *,
    prompts: tuple[str, ...],
    strengths: tuple[float, ...],
    interactive: bool,
    max_new_tokens: int,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Ask unsteered, steered by VECTOR, and prompted with the style's instruction, side by side.

    VECTOR is a file, a folder made by 'svf export', or a hub id.
    """
    if not prompts and not interactive:
        raise ConfigError("nothing to ask: give --prompt TEXT (repeatable) or --interactive")
    comparison = _open(vector, strengths or (None,), max_new_tokens, config_file)
    console = Console(highlight=False)
    for prompt in _prompts(prompts, interactive=interactive):
        answers = comparison.ask(prompt)
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "answers": answers}, ensure_ascii=False))
        else:
            _side_by_side(console, prompt, answers)
    return 0


def _open(source: str, strengths: Sequence[float | None], max_new_tokens: int, config_file: Path | None) -> SideBySide:
    from factory.configured import load_configured_target
    from factory.pairs.styles import load_style
    from factory.vector.sharing import load_shared

    settings = open_job(config_file).settings
    vector = load_shared(source)
    hide_loading_bar()
    with Console(stderr=True).status(f"loading {vector.model_name}"):
        target = load_configured_target(vector.model_name, settings)
    try:
        instruction = load_style(vector.style_name, settings.styles_dir).instruction()
    except (UnknownStyle, ConfigError):  # a vector made by arithmetic, or of somebody else's style
        instruction = None
    return SideBySide(target, vector, strengths, instruction, max_new_tokens)


def _prompts(given: Sequence[str], *, interactive: bool) -> Iterator[str]:
    yield from given
    while interactive:
        if sys.stdin.isatty():
            click.echo("\n> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _side_by_side(console: Console, prompt: str, answers: Mapping[str, str]) -> None:
    console.print()
    console.print(Text(prompt, style="bold"), soft_wrap=not console.is_terminal)
    if not console.is_terminal or console.width < ROOM:
        for name, answer in answers.items():
            console.print(Text.assemble("\n", (f"{name}:", "bold"), f" {answer}"), soft_wrap=not console.is_terminal)
        return
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in answers:
        grid.add_column(ratio=1)
    grid.add_row(*(Panel(Text(answer), title=name) for name, answer in answers.items()))
    console.print(grid)
