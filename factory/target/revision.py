"""The revision of local weights: a hash of every byte that decides what a model reads and says.

Hashing gigabytes at every start would cost more than loading them, so a file's hash is kept in the
cache folder, by its path, size, inode and the time of its last change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from factory.files import hash_of, sha256_of, write_atomically
from factory.target.download import cache_folder

WEIGHTS = ("*.safetensors", "*.bin", "*.py", "config.json", "generation_config.json")
SETTLED = 2.0  # seconds after which a file's next change shows in its time stamps for certain
LENGTH = 32  # letters of a revision; a hub's commit has 40


def folder_revision(folder: Path) -> str:
    """The revision of a model folder: its weights, configuration and code, not its tokenizer."""
    return revision_of(sorted(path for pattern in WEIGHTS for path in folder.glob(pattern) if path.is_file()))


def revision_of(paths: Sequence[Path]) -> str:
    """The revision of these files: their names and all their bytes."""
    return hash_of([[path.name, _file_sha256(path)] for path in paths])[:LENGTH]


def _file_sha256(path: Path) -> str:
    """The SHA-256 of a whole file, from the cache folder if the file is as it was."""
    stat = path.stat()
    identity = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    kept = cache_folder() / "hashes" / f"{hash_of(identity)}.sha256"
    known = _read(kept)
    if known is not None:
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - stat.st_ctime > SETTLED:
        with suppress(OSError):  # a cache folder that cannot be written costs time alone
            write_atomically(kept, f"{found} {sha256_of(found)[:8]}\n")
    return found


def _read(kept: Path) -> str | None:
    """A kept hash, if the file is whole."""
    try:
        found, check = kept.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return found if sha256_of(found)[:8] == check else None


def are_comparable(one: object, other: object) -> bool:
    """Whether two revisions are of one kind (a commit, a hash of whole files), so that they tell weights apart."""
    return isinstance(one, str) and isinstance(other, str) and len(one) == len(other) and len(one) in (LENGTH, 40)


def is_same_model(one: str, other: str) -> bool:
    """Whether two names of a model mean the same: equal, or two spellings of one path."""
    if one == other:
        return True
    first, second = (Path(name).expanduser() for name in (one, other))
    return first.exists() and second.exists() and first.samefile(second)
