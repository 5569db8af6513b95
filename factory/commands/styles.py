"""``svf styles``: what can be made."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.commands.options import config_option, json_option, open_job, output_option
from factory.commands.tables import folded
from factory.files import shipped_file
from factory.pairs.dataset import dataset_path, load_pairs
from factory.pairs.styles import list_styles


@click.command()
@config_option
@output_option
@json_option
def styles(config_file: Path | None, output: Path, as_json: bool) -> int:
    """List the styles that can be made, and the pairs there are of each."""
    found = list_styles(open_job(config_file, output).settings.styles_dir)
    pairs = {name: _count_pairs(output, name) for name in found}
    if as_json:
        rows = [style.model_dump(mode="json") | {"pairs": pairs[name]} for name, style in found.items()]
        click.echo(json.dumps(rows))
        return 0
    table = Table("style", "pairs", "description", box=None, pad_edge=False)
    for name, style in found.items():
        table.add_row(name, str(pairs[name] or "-"), Text(style.description))
    Console(highlight=False, markup=False).print(folded(table))
    return 0


def _count_pairs(output: Path, style: str) -> int:
    own = dataset_path(output, style)
    path = own if own.is_file() else shipped_file("datasets", own.name)
    return len(load_pairs(path)) if path.is_file() else 0
