"""``svf export``: a folder that can be shared."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("vectors", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("export"),
    show_default=True,
    help="A folder a vector is made there.",
)
def export(vectors: tuple[Path, ...], output: Path) -> int:
    """Write VECTORS as safetensors with a model card, ready for a hub or a colleague.

    'svf steer FOLDER' and factory.sharing.load_shared("FOLDER") read them again.
    """
    from factory.sharing import share
    from factory.vector import SteeringVector

    for path in vectors:
        vector = SteeringVector.load(path)
        click.echo(share(vector, output / path.stem))
    return 0
