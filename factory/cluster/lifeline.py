"""A child ends with its parent, whatever ends that: a signal, a crash, or SIGKILL.

Two lines hold. The kernel kills the child when its parent is gone (Linux). And a child's standard
input is a pipe of which the parent alone holds the other end: where that is read to its end, the
parent is gone, on any system. A program that cannot watch a pipe is started by this file, run as a
script::

    python -I lifeline.py PARENT PROGRAM [ARGUMENT ...]

Needs the standard library alone, so that it starts at once.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # prctl(2)
ORPHANED = 1  # exit status


def die_with(parent: int) -> None:
    """Have the kernel kill this process when process ``parent``, which started it, is gone; it outlives an exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(ORPHANED)


def end_with_input(last_act: Callable[[], None]) -> None:
    """End this process when its standard input ends, after ``last_act``."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        try:
            last_act()
        finally:
            os._exit(ORPHANED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
