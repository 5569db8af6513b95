"""Sharing a vector: a folder with its safetensors file and a model card, loadable from there or a hub.

The card (README.md) says what was measured and where the vector came from; a hub shows it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from factory.errors import VectorError
from factory.files import write_atomically
from factory.vector.vector import SteeringVector

CARD = "README.md"


def share(vector: SteeringVector, folder: Path) -> Path:
    """Write ``vector`` and its card into ``folder``; returns the vector's path."""
    path = folder / f"{_file_name(vector.style_name)}.safetensors"
    vector.save(path)
    write_atomically(folder / CARD, model_card(vector, path.name))
    return path


def _file_name(style: str) -> str:
    """A file name for a vector of ``style``, which somebody else may have written: no path, no control character."""
    name = re.sub(r"[^\w.+()-]+", "_", style.replace("*", "x")).strip("._")[:100]
    return name or "vector"


def model_card(vector: SteeringVector, file_name: str) -> str:
    """The card as Markdown, with the metadata that hubs read in front."""
    known: dict[str, Any] = vector.metadata
    head = {
        "base_model": vector.model_name,
        "library_name": "steering-vector-factory",
        "tags": ["steering-vector", "kv-cache-steering", vector.style_name],
    }
    environment = Environment(loader=PackageLoader("factory", "data"), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("card.md.j2").render(
        head=yaml.safe_dump(head, sort_keys=False),
        vector=vector,
        file_name=file_name,
        known=known,
        how=vector.extraction_config,
        evaluation=known.get("evaluation"),
    )


def load_shared(source: str | Path) -> SteeringVector:
    """Load a vector from a file, a folder made by :func:`share`, or a hub id such as ``name/vector``.

    Raises:
        VectorError: nothing is there, or more than one vector is.
    """
    path = Path(source)
    if path.is_file() or path.suffix in (".pt", ".safetensors"):
        return SteeringVector.load(path)
    folder = path if path.is_dir() else _download(str(source))
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise VectorError(f"{str(source)!r} should hold one vector, found {names}: name the file itself")
    return SteeringVector.load(found[0])


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise VectorError(f"{name!r} is no file or folder here, and cannot be fetched from the hub: {reason}") from None
