"""The store: where artifacts of runs are kept, on a folder, a shared volume or S3.

Content-addressed: a reply, a batch of pairs and a batch of differences each lie under a hash of
what made them, so that a task that runs twice finds its result and changes nothing. Writes are
atomic; reads verify. Paths cannot leave the store. This module does not know what artifacts mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from factory.errors import ConfigError, FactoryError, StoreError
from factory.files import hash_of, to_bytes, write_pieces

DEFAULT_STORE = "runs"  # a folder, in the current folder or in the output's
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
READS = 5  # of an object that others replace meanwhile, such as a claim that is renewed


class Store:
    """Artifacts by key, below one fsspec URL (``runs``, ``file:///data``, ``s3://bucket/prefix``)."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"store {url!r} cannot be used: {error}; s3:// needs pip install '.[s3]'") from None
        self.is_local = "file" in (self.files.protocol if isinstance(self.files.protocol, tuple) else ())
        # Clients of object stores have errors of their own: botocore's of a lost link are no OSError.
        self._troubles = OSError if self.is_local else Exception

    def path(self, key: str) -> str:
        """The full path of ``key``.

        Raises:
            StoreError: the key would lie outside the store.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise StoreError(f"store key {key!r} is not allowed: names of letters, digits, '.', '_', '-' between '/'")
        return posixpath.join(self.root, key)

    @contextmanager
    def _reaching(self, purpose: str) -> Iterator[None]:
        """Say of whatever goes wrong with the files that the store cannot be ``purpose``: read, written, listed."""
        try:
            yield
        except (FactoryError, FileNotFoundError, FileExistsError):  # a task that took too long says so itself
            raise
        except self._troubles as error:
            raise StoreError(f"store {self.url!r} cannot be {purpose}: {error}") from error

    def read(self, key: str) -> bytes | None:
        """The bytes under ``key``, or None."""
        try:
            with self._reaching("read"):
                return self._read(self.path(key))
        except FileNotFoundError:
            return None

    def _read(self, path: str) -> bytes:
        """The bytes of a file; once more where it was replaced after it was found: S3 tells of that."""
        for _ in range(READS):  # not cat_file: file systems cache listings, and another machine may have written since
            with _leaving_out_replaced(), self.files.open(path, "rb") as file:
                return bytes(file.read())
            self.files.invalidate_cache()
        raise StoreError(f"{path} was replaced {READS} times while it was read")

    def write(self, key: str, content: bytes) -> None:
        """Put ``content`` under ``key``: a reader sees the old bytes or the new, never a part."""
        path = self.path(key)
        with self._reaching("written"):
            if self.is_local:
                write_pieces(path, [content])
            else:
                self.files.pipe_file(path, content)  # one request: object stores are atomic by object

    def create(self, key: str, content: bytes) -> bool:
        """Put ``content`` under ``key`` if nothing lies there, in one step; returns whether it did."""
        path = self.path(key)
        try:
            with self._reaching("written"):
                if self.is_local:
                    write_pieces(path, [content], is_new=True)
                else:
                    self.files.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def write_pieces(self, key: str, pieces: Iterable[bytes]) -> str:
        """Like :meth:`write`, for content that need not fit into memory; returns its SHA-256."""
        path = self.path(key)
        digest = hashlib.sha256()

        def seen() -> Iterator[bytes]:
            for piece in pieces:
                digest.update(piece)
                yield piece

        with self._reaching("written"):
            if self.is_local:
                write_pieces(path, seen())
            else:
                with self.files.open(path, "wb") as file:  # object stores show an object when it is closed
                    file.writelines(seen())
        return digest.hexdigest()

    def exists(self, key: str) -> bool:
        """Whether something lies under ``key``."""
        path = self.path(key)
        self.files.invalidate_cache()
        with self._reaching("read"):
            return bool(self.files.exists(path))

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        path = self.path(key)
        with self._reaching("written"):
            if self.files.exists(path):
                self.files.rm_file(path)

    def modified_at(self, key: str) -> float:
        """When ``key`` was written, Unix time; 0 where the storage does not tell."""
        try:
            return float(self.files.modified(self.path(key)).timestamp())
        except (NotImplementedError, self._troubles):
            return 0.0

    def names(self, folder: str | None = None) -> list[str]:
        """Names of what lies directly in ``folder`` (None: in the store), sorted; none if there is no such folder."""
        self.files.invalidate_cache()
        path = self.root if folder is None else self.path(folder)
        try:
            with self._reaching("listed"):
                paths = self.files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(str(path).rstrip("/")) for path in paths)
        return sorted(name for name in names if KEY_PATTERN.fullmatch(name) and not name.endswith(".tmp"))

    # ---- JSON artifacts

    def write_json(self, key: str, content: Any) -> str:
        """Put JSON ``content`` under ``key`` with its own hash inside; returns the hash."""
        raw, digest = _envelope(content)
        self.write(key, raw)
        return digest

    def create_json(self, key: str, content: Any) -> bool:
        """Put JSON ``content`` under ``key`` if nothing lies there; returns whether it did."""
        return self.create(key, _envelope(content)[0])

    def read_json(self, key: str) -> Any | None:
        """The JSON content under ``key``, verified, or None if there is none.

        Raises:
            StoreError: the artifact is damaged.
        """
        raw = self.read(key)
        if raw is None:
            return None
        try:
            envelope = json.loads(raw)
            content, digest = envelope["content"], envelope["sha256"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{self.path(key)} is damaged: not what svf writes. Delete it and resume") from None
        if hash_of(content) != digest:
            raise StoreError(f"{self.path(key)} is damaged: its SHA-256 does not match. Delete it and resume")
        return content

    def require_json(self, key: str) -> Any:
        """Like :meth:`read_json`, but the artifact must be there.

        Raises:
            StoreError: it is missing or damaged.
        """
        content = self.read_json(key)
        if content is None:
            raise StoreError(f"{self.path(key)} is missing. Check that every machine has the same store")
        return content

    def put_json(self, kind: str, content: Any) -> str:
        """Keep ``content`` under its own hash in folder ``kind``; returns the key."""
        key = f"{kind}/{hash_of(content)}.json"
        if not self.exists(key):
            self.write_json(key, content)
        return key

    # ---- bytes artifacts that carry their own hash in front

    def write_sealed(self, key: str, content: bytes) -> None:
        """Put ``content`` under ``key`` behind its 32-byte SHA-256."""
        self.write(key, hashlib.sha256(content).digest() + content)

    def read_sealed(self, key: str) -> bytes | None:
        """The bytes that :meth:`write_sealed` put there, verified, or None.

        Raises:
            StoreError: the artifact is damaged.
        """
        raw = self.read(key)
        if raw is None:
            return None
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise StoreError(f"{self.path(key)} is damaged: its SHA-256 does not match. Delete it and resume")
        return raw[32:]


@contextmanager
def _leaving_out_replaced() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def _envelope(content: Any) -> tuple[bytes, str]:
    """JSON content with its own hash beside it, and the hash."""
    digest = hash_of(content)
    return to_bytes(json.dumps({"sha256": digest, "content": content}, ensure_ascii=False, sort_keys=True)), digest
