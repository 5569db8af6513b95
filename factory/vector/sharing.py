"""Sharing a vector: a folder with its safetensors file and a model card, loadable from there or a hub.

The card (README.md) says what was measured and where the vector came from; a hub shows it.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from factory.files import write_atomically
from factory.vector.learned import describe_learning
from factory.vector.sources import CARD
from factory.vector.vector import SteeringVector


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
    known = vector.metadata
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
        learned=describe_learning(vector),
    )


def load_shared(source: str | Path) -> SteeringVector:
    """Load a vector from a file, a folder made by :func:`share`, or a hub id such as ``name/vector@revision``.

    Raises:
        VectorError: see :meth:`SteeringVector.load`.
    """
    return SteeringVector.load(source)
