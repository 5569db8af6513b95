"""One run at a time in an output folder of this machine: two would pay twice and mix their outputs.

And one at a time who writes files there that belong together.

The lock is the kernel's, on a file in the folder: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from factory.errors import FolderBusy

NAME = ".svf-lock"


@contextlib.contextmanager
def holding(folder: Path, work: str) -> Iterator[None]:
    """Hold ``folder`` for ``work``, such as ``run 20261126-...``, until the block ends.

    Raises:
        FolderBusy: another process holds it; says which, with what, and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderBusy(
                f"the output folder {str(folder)!r} is in use by {holder}: "
                "wait for it, end it, or choose another --output"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} ({work}, since {time.strftime('%H:%M:%S')})\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Wait for others that write files of ``folder`` that belong together, and keep them waiting until the block ends.

    No file is left behind: the lock is on the folder itself. Where it takes none (some network folders) nobody waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
