"""Where a vector is read from: a file, a folder that holds one, or a repository at a hub."""

from __future__ import annotations

from pathlib import Path

from factory.errors import VectorError
from factory.hub import fetch_repository, is_repository

ENDINGS = (".pt", ".safetensors")
CARD = "README.md"


def find_vector(source: str | Path, *, only_hub: bool = False) -> Path:
    """The file of a vector: ``source`` itself, the one vector in a folder, or that of ``owner/name[@revision]``.

    With ``only_hub`` what lies here under that name is not looked at.

    Raises:
        VectorError: nothing is there, or more than one vector is.
        HubError: the repository cannot be fetched.
    """
    path = Path(source)
    if not only_hub and (path.suffix in ENDINGS or path.is_file()):
        return path
    if not only_hub and path.is_dir():
        return _only_one(path, source)
    if not is_repository(str(source)):
        return path  # reading it says that there is no such file
    return _only_one(fetch_repository(str(source), ["*.safetensors", CARD]), source)


def _only_one(folder: Path, source: str | Path) -> Path:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise VectorError(f"{str(source)!r} should hold one vector, found {names}: name the file itself")
    return found[0]
