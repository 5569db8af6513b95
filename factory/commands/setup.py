"""Commands about this machine: fetch a model, see the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from factory.commands.options import config_option, hide_loading_bar, json_option, open_job
from factory.commands.tables import folded
from factory.config import SECTIONS
from factory.log import start_logging


@click.command()
@click.argument("model", required=False)
@config_option
def download(model: str | None, config_file: Path | None) -> int:
    """Fetch MODEL, or the configured target model, so that a later run finds it here."""
    from factory.target.download import download_model

    hide_loading_bar()
    start_logging(terminal=False)
    name = model or open_job(config_file).settings.target_model
    with Console(stderr=True).status(f"fetching {name}"):
        folder = download_model(name)
    click.echo(folder)
    return 0


@click.command()
@config_option
@json_option
def config(config_file: Path | None, as_json: bool) -> int:
    """Show the effective settings and where each came from."""
    configuration = open_job(config_file).configuration
    flat = _flatten(configuration.settings.model_dump(mode="json"))
    if as_json:
        rows = {key: {"value": value, "origin": configuration.origin(key)} for key, value in flat.items()}
        click.echo(json.dumps(rows))
        return 0
    table = Table("key", "value", "from", box=None, pad_edge=False)
    for key, value in flat.items():
        table.add_row(key, json.dumps(value, ensure_ascii=False), configuration.origin(key))
    table, console = folded(table), Console(highlight=False, markup=False)
    table.columns[0].no_wrap = console.width >= 2 * max(map(len, flat))  # a key is to be copied
    console.print(table)
    return 0


def _flatten(settings: Mapping[str, object]) -> dict[str, object]:
    """Sections as dotted keys; a secret in a URL is never shown."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if key in SECTIONS and isinstance(value, dict):
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[key] = _without_password(value) if key in ("broker_url", "store") and isinstance(value, str) else value
    return flat


def _without_password(url: str) -> str:
    from kombu.utils.url import sanitize_url

    return str(sanitize_url(url))
