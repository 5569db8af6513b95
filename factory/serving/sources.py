"""Where vectors lie: files, folders of them, output folders, stores of runs; here, on a hub, or at a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from factory.errors import VectorError
from factory.vector.sharing import load_shared
from factory.vector.vector import SteeringVector

ENDINGS = (".safetensors", ".pt")
OUTPUTS = "steering_vectors"  # where an output folder has its vectors
RUN_NAME = re.compile(r"\d{8}-\d{6}-\w+")  # begins with the time, so that names stand in order
RUNS_LOOKED_AT = 16  # of a store: the latest
VECTOR_IN_RUN = "vector.pt"

Stamp = tuple[object, ...]


@dataclass(frozen=True)
class Entry:
    """A file or a folder as its file system tells of it; ``stamp`` is another when its content is."""

    name: str
    is_folder: bool
    stamp: Stamp

    @classmethod
    def of(cls, info: Mapping[str, object]) -> Entry:
        """What fsspec knows of it: file systems have different names for when a file changed."""
        changed = info.get("mtime") or info.get("ETag") or info.get("LastModified") or info.get("created")
        return cls(str(info["name"]), info["type"] == "directory", (info.get("size"), str(changed)))

    @property
    def stem(self) -> str:
        """Its path without the ending."""
        return str(PurePosixPath(self.name).with_suffix(""))


def is_remote(source: str) -> bool:
    """Whether a source is a URL, which takes a network to look at."""
    return "://" in source


def find_vectors(source: str) -> dict[str, Stamp]:
    """Paths of the vectors at ``source``, each with what changes when its file does.

    Of a folder: the vectors in it and in its ``steering_vectors``; where there are none and it is a store,
    the latest vector of each style among its last runs. Of a vector in both forms, one.

    Raises:
        OSError: the source is out of reach.
        VectorError: its kind of URL cannot be read.
    """
    if not is_remote(source) and not Path(source).exists():
        return {source: ()}  # a hub id, or a mistake, which loading will name
    try:
        files, path = url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise VectorError(f"{error}; s3:// needs pip install '.[s3]'") from None
    files.invalidate_cache()
    entries = _inside(files, path) if files.isdir(path) else [Entry.of(files.info(path))]
    safe = {entry.stem for entry in entries if entry.name.endswith(ENDINGS[0])}
    chosen = [entry for entry in entries if entry.name.endswith(ENDINGS[0]) or entry.stem not in safe]
    return {files.unstrip_protocol(e.name) if is_remote(source) else e.name: e.stamp for e in chosen}


def load_vector(path: str) -> SteeringVector:
    """The vector at a path that :func:`find_vectors` gave.

    Raises:
        VectorError: there is none, or it cannot be read.
    """
    if not is_remote(path):
        return load_shared(path)
    files, inner = url_to_fs(path)
    return SteeringVector.from_bytes(files.cat_file(inner), source=path)


def _inside(files: Any, folder: str) -> list[Entry]:
    inside = _listed(files, folder)
    folders = [entry.name for entry in inside if entry.is_folder]
    found = _vectors_among(inside)
    for outputs in (name for name in folders if PurePosixPath(name).name == OUTPUTS):
        found += _vectors_among(_listed(files, outputs))
    return found or _of_runs(files, folders)


def _listed(files: Any, folder: str) -> list[Entry]:
    return [Entry.of(info) for info in files.ls(folder, detail=True)]


def _vectors_among(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.is_folder and entry.name.endswith(ENDINGS)]


def _of_runs(files: Any, folders: Sequence[str]) -> list[Entry]:
    """The latest vector of each style."""
    runs = sorted((name for name in folders if RUN_NAME.fullmatch(PurePosixPath(name).name)), reverse=True)
    found: dict[str, Entry] = {}
    for run in runs[:RUNS_LOOKED_AT]:
        for style in (entry.name for entry in _listed(files, run) if entry.is_folder):
            name, path = PurePosixPath(style).name, f"{style}/{VECTOR_IN_RUN}"
            if name not in found and files.exists(path):
                found[name] = Entry.of(files.info(path))
    return list(found.values())
