"""``svf init``: the files from which a style of one's own is made."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from factory.planning.scaffold import write_scaffold
from factory.target.download import BUILT_IN


@click.command()
@click.argument("folder", required=False, default=Path(), type=click.Path(path_type=Path, file_okay=False))
@click.option("--style", default="my_style", show_default=True, help="Name of the style.")
@click.option(
    "--description",
    default="Answers like a friendly teacher: one everyday example first, then the idea, then a check question",
    help="The style in one line: how an answer in it sounds.",
)
@click.option("--target-model", default=BUILT_IN, show_default=True, help="The model to steer.")
def init(folder: Path, style: str, description: str, target_model: str) -> int:
    """Write a configuration, a style of your own and questions into FOLDER (here without one), to be edited.

    Files that exist are never touched.
    """
    console = Console(highlight=False, soft_wrap=True)
    for path in write_scaffold(folder, style=style, description=description, target_model=target_model):
        console.print(Text(f"wrote {path}"))
    where = shlex.quote(str(folder))
    console.print(
        Text(
            f"\nNext: edit the style (its markers say how it is recognised) and the questions, then\n"
            f"  export OPENAI_API_KEY=...           or set base_url in config.yaml: a teacher writes the pairs\n"
            f"  cd {where} && svf estimate          calls, cost and time; asks nobody\n"
            f"  cd {where} && svf generate          pairs, vector and report\n"
        )
    )
    return 0
