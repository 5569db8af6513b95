"""A program that runs each command twice at once: it loads what ``svf`` needs once, then forks.

Reads from standard input a list of pairs of commands, each a list of words; writes what became of them.
Both of a pair begin together in the current folder; what goes on for ever (a server) is ended when the
other one has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from factory import cli

PATIENCE = 120.0  # s
AFTER = 2.0  # s that a command may go on when its twin has ended and it serves


def begin(words: list[str], said: int) -> int:
    """Start ``svf`` with ``words`` in a child; its output goes to the file ``said``."""
    child = os.fork()
    if child:
        return child
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, file in enumerate((nothing, said, said)):
        os.dup2(file, stream)
    sys.argv = ["svf", *words]
    status = 99
    try:
        cli.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def both(first: list[str], second: list[str]) -> list[dict[str, object]]:
    """What two commands said that began together, and how each ended."""
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        files = (one, other)
        children = [begin(words, file.fileno()) for words, file in zip((first, second), files, strict=True)]
        statuses = wait(children, for_ever=first[0] in ("serve", "metrics"))
        for file in files:
            file.seek(0)
        return [{"status": status, "said": file.read().decode()} for status, file in zip(statuses, files, strict=True)]


def wait(children: list[int], *, for_ever: bool) -> list[int]:
    """The exit statuses of both children; those that do not end by themselves are told to."""
    ended: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE
    while len(ended) < len(children):
        for child in set(children) - set(ended):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + AFTER) if for_ever else deadline
        if time.monotonic() > deadline:
            for child in set(children) - set(ended):
                os.kill(child, signal.SIGTERM)
            deadline += PATIENCE
        time.sleep(0.02)
    return [ended[child] for child in children]


def main() -> None:
    """Run the pairs that standard input holds, one pair after the other."""
    rooms = ("commands", "target", "vector", "evaluation", "benchmark", "report", "serving", "learning", "planning")
    folder = Path(cli.__file__).parent
    for file in (file for room in rooms for file in (folder / room).glob("[!_]*.py")):
        import_module(f"factory.{file.parent.name}.{file.stem}")
    for name in ("uvicorn", "huggingface_hub", "prometheus_client", "workers.flow.submit", "transformers.models.llama"):
        import_module(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)  # children of a fork have no pool of threads
    pairs = json.load(sys.stdin)
    print(json.dumps([both(*pair) for pair in pairs]))


if __name__ == "__main__":
    main()
