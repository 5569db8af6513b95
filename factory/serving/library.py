"""The vectors that a server offers: found in files, folders and stores, and found again when those change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from factory.errors import FactoryError, VectorError
from factory.log import log
from factory.vector.setting import Setting
from factory.vector.sharing import load_shared
from factory.vector.vector import SteeringVector

ENDINGS = (".safetensors", ".pt")
LOOK_AGAIN_SECONDS = 2.0

Stamp = tuple[Any, ...]


class VectorLibrary:
    """Vectors by name, the style's; of two files of one style, the files' names tell them apart.

    ``sources`` are files, folders, hub ids, or fsspec URLs such as ``s3://bucket/vectors``. Vectors
    that ``check`` raises for, those of other models, are kept apart in ``refused``, with the reason.
    """

    def __init__(self, sources: Sequence[str], check: Callable[[SteeringVector], None] | None = None) -> None:
        self.sources = sources
        self.check = check
        self.vectors: dict[str, SteeringVector] = {}
        self.refused: dict[str, str] = {}
        self._loaded: dict[str, tuple[Stamp, SteeringVector | FactoryError]] = {}
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self.reload()

    def refresh(self) -> None:
        """Look whether something changed, at most every two seconds."""
        if time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
            self.reload()

    def reload(self) -> None:
        """Look now. Files that did not change are not read again; a source out of reach keeps what it gave."""
        with self._lock:
            found: dict[str, tuple[Stamp, SteeringVector | FactoryError]] = {}
            for source in self.sources:
                try:
                    found |= {path: self._read(path, stamp) for path, stamp in _files_of(source).items()}
                except (OSError, FactoryError) as error:
                    if not self._loaded:
                        raise VectorError(f"vectors in {source!r} cannot be read: {error}") from None
                    log.warning("vectors in %r cannot be read now, those known stay: %s", source, error)
                    found |= {path: known for path, known in self._loaded.items() if path.startswith(source)}
            self._loaded = found
            self._name()
            self._looked_at = time.monotonic()

    def _read(self, path: str, stamp: Stamp) -> tuple[Stamp, SteeringVector | FactoryError]:
        known = self._loaded.get(path)
        if known and known[0] == stamp:
            return known
        try:
            return stamp, _load(path)
        except FactoryError as error:
            return stamp, error

    def _name(self) -> None:
        vectors: dict[str, SteeringVector] = {}
        refused: dict[str, str] = {}
        for path, (_, content) in sorted(self._loaded.items()):
            stem = PurePosixPath(path).stem
            try:
                if isinstance(content, FactoryError):
                    raise content
                if self.check is not None:
                    self.check(content)
                Setting.recommended(content)  # raises where what is recommended cannot be followed
            except FactoryError as error:
                refused[stem] = str(error)
                continue
            name = content.style_name
            vectors[stem if name in vectors and vectors[name] != content else name] = content
        for name, reason in refused.items():
            if name not in self.refused:
                log.warning("not offered: %s", reason)
        self.vectors, self.refused = vectors, refused


def _files_of(source: str) -> dict[str, Stamp]:
    """Files of vectors at ``source``, each with what changes when it does."""
    files, path = url_to_fs(source)
    is_local = "://" not in source
    if is_local and not Path(source).exists():
        return {source: ()}  # a hub id, or a mistake, which loading will name
    files.invalidate_cache()
    if not files.isdir(path):
        entries = [files.info(path)]
    else:
        entries = [entry for entry in files.ls(path, detail=True) if entry["name"].endswith(ENDINGS)]
    stems = {str(PurePosixPath(entry["name"]).with_suffix("")) for entry in entries if _is_safe(entry["name"])}
    return {
        (entry["name"] if is_local else files.unstrip_protocol(entry["name"])): _stamp(entry)
        for entry in entries
        # Of a vector in both forms, one: they hold the same.
        if _is_safe(entry["name"]) or str(PurePosixPath(entry["name"]).with_suffix("")) not in stems
    }


def _is_safe(name: str) -> bool:
    return name.endswith(".safetensors")


def _stamp(entry: dict[str, Any]) -> Stamp:
    return (entry.get("size"), str(entry.get("mtime") or entry.get("ETag") or entry.get("LastModified")))


def _load(path: str) -> SteeringVector:
    if "://" not in path:
        return load_shared(path)
    files, inner = url_to_fs(path)
    return SteeringVector.from_bytes(files.cat_file(inner), source=path)
