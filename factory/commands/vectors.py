"""Commands about vectors: describe them, steer with them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.commands.options import json_option
from factory.commands.tables import folded
from factory.run.export import run_path
from factory.vector.learned import describe_learning
from factory.vector.quality import Quality
from factory.vector.recommendation import Recommendation


@click.command()
@click.argument("vectors", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def show(vectors: tuple[Path, ...], as_json: bool) -> int:
    """Describe VECTORS: shapes, layers, norms, pairs, quality, and the cosine between several."""
    from factory.vector.vector import SteeringVector

    loaded = [SteeringVector.load(path) for path in vectors]
    cosines = {f"{a.style_name} ~ {b.style_name}": a.cosine(b) for a, b in combinations(loaded, 2) if _comparable(a, b)}
    if as_json:
        click.echo(json.dumps({"vectors": [_describe(vector) for vector in loaded], "cosines": cosines}))
        return 0
    console = Console(highlight=False, markup=False)
    for path, vector in zip(vectors, loaded, strict=True):
        console.print(folded(_table(vector, path)), markup=False)
        _print_run(console, path)
    for names, value in cosines.items():
        console.print(Text(f"cosine {names}: {value:+.3f}"))
    return 0


def _comparable(first: Any, second: Any) -> bool:
    """Whether a cosine means something: between vectors of one model, at the same layers."""
    same = first.model_name == second.model_name and first.layer_indices == second.layer_indices
    return bool(same and first.value_vector.shape == second.value_vector.shape)


def _print_run(console: Console, path: Path) -> None:
    """What is known of the run that made a vector, if its file lies beside it."""
    file = run_path(path)
    if file.is_file():
        made = json.loads(file.read_text(encoding="utf-8"))
        said = f"made by run {made['run']}, peak memory of its worker {made['peak_memory_mib']:,} MiB\n"
        console.print(said, soft_wrap=True)


def _describe(vector: Any) -> dict[str, Any]:
    return {
        "style_name": vector.style_name,
        "model_name": vector.model_name,
        "layer_indices": vector.layer_indices,
        "shape": list(vector.value_vector.shape),
        "norms": vector.norms(),
        "metadata": vector.metadata,
        "extraction_config": vector.extraction_config,
    }


def _table(vector: Any, path: Path) -> Table:
    """What a person wants to know of a vector at a glance."""
    known, how = vector.metadata, vector.extraction_config
    n_layers, n_heads, head_dim = vector.value_vector.shape
    norms = vector.norms()
    table = Table(title=Text(str(path)), title_justify="left", show_header=False, box=None, title_style="bold")
    table.add_row("style", vector.style_name)
    table.add_row("model", f"{vector.model_name} ({how.get('dtype', '?')}, revision {how.get('model_revision', '?')})")
    table.add_row("shape", f"{n_layers} layers x {n_heads} KV heads x {head_dim}, keys and values")
    table.add_row("layers", _ranges(vector.layer_indices))
    table.add_row("recipe", str(how.get("recipe", "?")))
    learned = describe_learning(vector)
    if learned:
        table.add_row("learned", learned)
    table.add_row("pairs", f"{known.get('pairs_used', '?')} used, {known.get('pairs_failed', 0)} failed")
    for kind in ("values", "keys"):
        table.add_row(f"norm of {kind}", f"{min(norms[kind]):.2f} to {max(norms[kind]):.2f} per layer")
    quality = Quality.read(known)
    if quality:
        verdict = "enough pairs" if quality.enough_pairs else "more pairs would help"
        table.add_row("split-half cosine", f"{quality.split_half_cosine:.3f} ({verdict})")
        table.add_row("pair agreement", f"mean cosine {quality.mean_pair_cosine:.3f} with the vector")
    best = Recommendation.read(known)
    if best:
        keys = f", keys {best.key_strength:g}" if best.key_strength else ""
        verdict = f", {known['verdict']}" if known.get("verdict") else ""
        table.add_row("recommended", f"strength {best.strength:g}{keys}{verdict}")
    return table


def _ranges(layers: list[int]) -> str:
    """Layers as a person writes them: 8-15,20."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


@click.command()
@click.argument("vectors", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("export"),
    show_default=True,
    help="Each vector gets a folder there.",
)
def export(vectors: tuple[Path, ...], output: Path) -> int:
    """Write VECTORS as safetensors with a model card, ready for a hub or a colleague.

    'svf steer FOLDER' and factory.load_shared("FOLDER") read them again.
    """
    from factory.vector.sharing import share
    from factory.vector.vector import SteeringVector

    for path in vectors:
        vector = SteeringVector.load(path)
        click.echo(share(vector, output / path.stem))
    return 0
