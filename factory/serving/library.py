"""The vectors that a server offers: found in files, folders and stores, and found again when those change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain, count
from operator import itemgetter
from pathlib import PurePosixPath

from factory.errors import FactoryError, VectorError
from factory.log import log
from factory.serving.sources import Stamp, find_vectors, is_remote, load_vector
from factory.vector.setting import Setting
from factory.vector.vector import SteeringVector

LOOK_AGAIN_SECONDS = 2.0
LOOK_AFAR_SECONDS = 30.0  # where looking is a request to another machine

Known = dict[str, tuple[Stamp, SteeringVector | FactoryError]]  # by path: what changes with the file, and what it held


class VectorLibrary:
    """Vectors by name, the style's; of two files of one style, the files' names tell them apart.

    ``sources`` are files, folders, stores, hub ids, or fsspec URLs such as ``s3://bucket/vectors``. Vectors
    that ``check`` raises for, those of other models, are kept apart in ``refused``, with the reason.
    """

    def __init__(self, sources: Sequence[str], check: Callable[[SteeringVector], None] | None = None) -> None:
        self.sources = sources
        self.check = check
        self.vectors: dict[str, SteeringVector] = {}
        self.refused: dict[str, str] = {}
        self._loaded: dict[str, Known] = {}  # by source
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self.reload()

    def refresh(self) -> None:
        """Look whether something changed, at most every two seconds, or thirty where a source is remote."""
        pause = LOOK_AFAR_SECONDS if any(map(is_remote, self.sources)) else LOOK_AGAIN_SECONDS
        if time.monotonic() - self._looked_at > pause:
            self.reload()

    def reload(self) -> None:
        """Look now. Files that did not change are not read again; a source out of reach keeps what it gave."""
        with self._lock:
            self._loaded = {source: self._look(source) for source in self.sources}
            self._name()
            self._looked_at = time.monotonic()

    def _look(self, source: str) -> Known:
        try:
            return {path: self._read(source, path, stamp) for path, stamp in find_vectors(source).items()}
        except Exception as error:  # clients of object stores have errors of their own
            if source not in self._loaded:
                raise VectorError(f"vectors in {source!r} cannot be read: {error}") from None
            log.warning("vectors in %r cannot be read now, those known stay: %s", source, error)
            return self._loaded[source]

    def _read(self, source: str, path: str, stamp: Stamp) -> tuple[Stamp, SteeringVector | FactoryError]:
        known = self._loaded.get(source, {}).get(path)
        if known and known[0] == stamp:
            return known
        try:
            return stamp, load_vector(path)
        except FactoryError as error:
            return stamp, error

    def _name(self) -> None:
        vectors: dict[str, SteeringVector] = {}
        refused: dict[str, str] = {}
        loaded = {path: content for known in self._loaded.values() for path, (_, content) in known.items()}
        for path, content in sorted(loaded.items(), key=itemgetter(0)):
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
            vectors[_free_name(content, stem, vectors)] = content
        for name, reason in refused.items():
            if name not in self.refused:
                log.warning("not offered: %s", reason)
        self.vectors, self.refused = vectors, refused


def _free_name(vector: SteeringVector, stem: str, taken: dict[str, SteeringVector]) -> str:
    """The style's name, else the file's, else one with a number; the same vector keeps its name."""
    names = chain((vector.style_name, stem), (f"{vector.style_name}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken or taken[name] == vector)
