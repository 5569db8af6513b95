"""Files and hashes: written whole or not at all, named by their content; and text that a person wrote."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from factory.errors import ConfigError


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    write_pieces(path, [to_bytes(content)])


def write_new(path: str | Path, content: str | bytes) -> None:
    """Write a file that nobody else may have written meanwhile.

    Raises:
        FileExistsError: there is such a file; it stays as it is.
    """
    write_pieces(path, [to_bytes(content)], is_new=True)


def write_pieces(path: str | Path, pieces: Iterable[bytes], *, is_new: bool = False) -> None:
    """Like :func:`write_atomically`, for content that need not fit into memory; it survives a loss of power.

    Raises:
        FileExistsError: there is such a file, and it was to be new.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_written(path: str | Path, kind: str, error: type[ConfigError] = ConfigError) -> str:
    """The text of a file that a person wrote: UTF-8, a byte order mark left out, line ends as they are.

    ``kind`` names the file in messages ("question file").

    Raises:
        ConfigError (or ``error``, a class of it): there is no such file, it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"{kind} {str(path)!r} does not exist") from None
    except OSError as problem:
        raise error(f"{kind} {str(path)!r} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise error(
            f"{kind} {str(path)!r} is not UTF-8 (byte {problem.start}): save it as UTF-8, with or without a "
            "byte order mark"
        ) from None


def sha256_of(content: str | bytes) -> str:
    """The SHA-256 of text or bytes, in hexadecimal."""
    return hashlib.sha256(to_bytes(content)).hexdigest()


def to_bytes(content: str | bytes) -> bytes:
    """Text as UTF-8. A lone surrogate, half of a cut emoji, gets three bytes that are its own, and no error."""
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content


def whole_text(text: str) -> str:
    """Text without lone surrogates, which no file and no tokenizer takes: each becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shipped_file(folder: str, name: str) -> Path:
    """A file of ``datasets/`` or ``questions/`` as it came with the factory.

    A wheel holds both folders inside the package; a checkout has them beside it.
    """
    package = Path(__file__).parent
    inside = package / "data" / folder / name
    return inside if inside.exists() else package.parent / folder / name


def hash_of(content: Any) -> str:
    """The SHA-256 of JSON content in its canonical form: equal content, equal hash."""
    return sha256_of(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def today() -> str:
    """The date as ``2026-11-26``, in UTC: workers stand in several time zones."""
    return time.strftime("%Y-%m-%d", time.gmtime())
