"""``svf serve`` as a process of its own, for tests and the benchmark."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager

from tests.conftest import ROOT

KEY = "a-key-for-tests"


@contextmanager
def served(folder, *words, environment=None, key=KEY):
    """A server of the vectors in ``folder``: its URL, and its process, whose lines gather in ``process.said``."""
    program = [sys.executable, "-c", "from factory.cli import main; main()", "serve", str(folder), "--port", "0"]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SVF_SERVER_KEY": key} | (environment or {})
    process = subprocess.Popen(
        [*program, *words], cwd=folder, env=os.environ | settings, stderr=subprocess.PIPE, text=True
    )
    process.said = []
    try:
        for line in process.stderr:
            process.said.append(line)
            if line.startswith("http://"):
                break
        else:
            raise AssertionError("".join(process.said))
        threading.Thread(target=lambda: process.said.extend(process.stderr), daemon=True).start()
        yield line.split()[0], process
    finally:
        process.terminate()
        process.wait(60)
