"""Commands that exchange vectors: with a model hub, and with other programs."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import click

from factory.errors import ConfigError
from factory.extras import require_target
from factory.files import write_atomically, write_new

VECTORS = Path("steering_vectors")


folder_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=VECTORS,
    show_default=True,
    help="Folder for the vector's file.",
)


@click.command()
@click.argument("vector", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--private", is_flag=True, help="A repository that is made now is seen by its owner alone.")
def push(vector: Path, repository: str, private: bool) -> int:
    """Put VECTOR and its model card into REPOSITORY at the hub: owner/name, or owner/name@branch.

    The repository is made if there is none. The key is HF_TOKEN, or that of the hub's own login.
    """
    require_target()
    from factory.hub import push_folder
    from factory.vector.sharing import share
    from factory.vector.vector import SteeringVector

    loaded = SteeringVector.load(vector)
    with tempfile.TemporaryDirectory() as folder:
        share(loaded, Path(folder))
        commit = push_folder(Path(folder), repository, private=private)
    click.echo(commit)
    click.echo(f'others try it with: svf steer {shlex.quote(repository)} -p "..."', err=True)
    return 0


@click.command()
@click.argument("repository")
@folder_option
def pull(repository: str, output: Path) -> int:
    """Fetch the vector of REPOSITORY at the hub: owner/name, or owner/name@revision; prints its file's path.

    Its card is written beside it. A file that holds something else is never overwritten.
    """
    require_target()
    from factory.hub import is_repository
    from factory.vector.sharing import model_card
    from factory.vector.sources import find_vector
    from factory.vector.vector import SteeringVector

    if not is_repository(repository):
        raise ConfigError(f"{repository!r} is no repository: expected owner/name or owner/name@revision")
    source = find_vector(repository, only_hub=True)
    vector = SteeringVector.load(source)
    path = output / source.name
    content = source.read_bytes()
    try:
        write_new(path, content)
    except FileExistsError:
        if path.read_bytes() != content:
            raise ConfigError(
                f"{path} exists and is another vector: remove it, or name another folder with --output"
            ) from None
    write_atomically(path.with_suffix(".md"), model_card(vector, path.name))
    click.echo(path)
    click.echo(f'to compare answers: svf steer {shlex.quote(str(path))} -p "..."', err=True)
    return 0


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, help="The model that it was made from: hub id, folder or smollm2-135m-instruct."
)
@click.option("--style", help="Name of its style [default: the file's].")
@folder_option
def import_(file: Path, model: str, style: str | None, output: Path) -> int:
    """Make a vector of FILE, a .pt file of cache-steering; prints the path of the vector's file.

    Its values are taken over. Its keys are not: they were averaged at positions that differ. Vectors of
    the residual stream (repeng, steering-vectors) are refused.
    """
    require_target()
    from factory.pairs.styles import check_style_name
    from factory.vector.foreign import import_vector

    name = style or file.stem
    check_style_name(name)
    path = output / f"{name}.pt"
    if path.exists():
        raise _exists(path)
    vector = import_vector(file, model=model, style=name)
    try:
        write_new(path, vector.to_pt())
    except FileExistsError:  # of two that import at once, the other was first
        raise _exists(path) from None
    click.echo(path)
    where = shlex.quote(str(path))
    click.echo(f'its keys are left out, its values steer; to compare answers: svf steer {where} -p "..."', err=True)
    return 0


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists already, and stays as it is: name another --style or --output")
