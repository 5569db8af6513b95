"""``svf serve --engine vllm``: vLLM's server in the place of ours, with the same vectors and field."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from factory.errors import ConfigError
from factory.vllm.launch import Place, check_python, command

NOT_VLLMS = {"max_queue": "--max-queue", "max_body": "--max-body"}


def serve_vllm(
    sources: Sequence[str], model: str, place: Place, *, python: str, more: str | None, key: str | None
) -> NoReturn:
    """Become vLLM's server; its log and signals are those of this process.

    Raises:
        ConfigError: that Python has no vLLM, or an option is not vLLM's.
    """
    refuse_options_of_the_own_engine()
    check_python(python)
    words = command(python, _weights(model), model, sources, place) + shlex.split(more or "")
    click.echo(shlex.join(words), err=True)
    environment = os.environ | ({"VLLM_API_KEY": key} if key else {})
    os.execve(words[0], words, environment)


def refuse_options_of_the_own_engine() -> None:
    """Refuse what was asked for and vLLM has no way to do.

    Raises:
        ConfigError: names the option.
    """
    context = click.get_current_context()
    for name, option in NOT_VLLMS.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise ConfigError(f"{option} is not for --engine vllm, which has no such limit: put a proxy in front")


def _weights(model: str) -> str:
    from factory.target.download import BUILT_IN, built_in_folder

    if model == BUILT_IN:
        return str(built_in_folder())
    if Path(model).suffix == ".gguf":
        raise ConfigError(f"{model}: --engine vllm serves folders of safetensors and hub ids, not GGUF files")
    return str(Path(model).expanduser()) if Path(model).expanduser().exists() else model
