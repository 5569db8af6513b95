"""Flags that several commands share, and what they mean for the settings."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from factory.config import Configuration, Settings, load_configuration
from factory.store import DEFAULT_STORE, Store
from factory.teacher.endpoint import OPENAI_KEY

OWN_KEY = "TEACHER_API_KEY"  # variable of a key that --api-key gives for a server of one's own
KEY_FLAG = "--api-key"
Command = TypeVar("Command", bound=Callable[..., Any])

config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file [default: config.yaml]."
)
output_option = click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Output folder [default: .]."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


@dataclass(frozen=True)
class Job:
    """What a command was asked to do: its settings, its output folder, and its bound."""

    configuration: Configuration
    output: Path
    limit: int | None = None

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.configuration.settings

    @property
    def store_url(self) -> str:
        """Where artifacts are kept: the configured store, else ``runs`` in the output folder."""
        return self.settings.store or str((self.output / DEFAULT_STORE).resolve())

    @property
    def store(self) -> Store:
        """The store at :attr:`store_url`."""
        return Store(self.store_url)


def open_job(config_file: Path | None, output: Path = Path(), **flags: Any) -> Job:
    """The job of a command that takes ``--config`` and ``--output``; ``flags`` override settings."""
    given = {key: value for key, value in flags.items() if value is not None}
    return Job(load_configuration(config_file, flags=given), output)


def job_options(command: Command) -> Command:
    """The flags of ``generate``, ``enqueue`` and ``estimate``; gives the command a :class:`Job`."""

    @click.argument("more_styles", metavar="[STYLE]...", nargs=-1)
    @config_option
    @click.option("--styles", "-s", multiple=True, metavar="STYLE...", help="Styles to make [default: the configured].")
    @click.option("--api-key", help=f"Key of the teacher's endpoint; better {OPENAI_KEY} or a file.")
    @click.option("--api-key-file", type=click.File(), help="File with that key; - reads it from standard input.")
    @output_option
    @click.option("--questions", type=click.Path(path_type=Path), help="File with questions, one a line.")
    @click.option("--limit", type=click.IntRange(min=1), help="At most this many pairs per style.")
    @click.option("--rounds", type=click.IntRange(min=0), help="Rounds of learning, at most; 0: vectors stay means.")
    @click.option("--extend", is_flag=True, default=None, help="Add pairs for questions that a dataset lacks.")
    @functools.wraps(command)
    def wrapped(
        *,
        more_styles: tuple[str, ...],
        config_file: Path | None,
        styles: tuple[str, ...],
        api_key: str | None,
        api_key_file: TextIO | None,
        output: Path,
        questions: Path | None,
        limit: int | None,
        rounds: int | None,
        extend: bool | None,
        **rest: Any,
    ) -> Any:
        flags = {
            "styles": _style_names((*styles, *more_styles)) or None,
            "custom_questions_file": str(questions) if questions else None,
            "learning.rounds": rounds,
            "extend": extend,
        }
        given = {key: value for key, value in flags.items() if value is not None}
        configuration = load_configuration(config_file, flags=given)
        if api_key_file is not None:
            _keep_key(api_key_file.read().strip(), configuration.settings)
        if api_key:
            _keep_key(api_key, configuration.settings)
            _begin_without_key()
            configuration = load_configuration(config_file, flags=given)
        return command(Job(configuration, output, limit), **rest)

    return wrapped  # type: ignore[return-value]


def _style_names(words: Sequence[str]) -> list[str]:
    """The styles of ``--styles a b``, ``-s a -s b``, ``--styles a,b`` and plain ``a b``, each once."""
    return list(dict.fromkeys(name for word in words for name in word.replace(",", " ").split()))


def _keep_key(api_key: str, settings: Settings) -> None:
    """Put a key where this process and its workers look for that of the teacher's endpoint."""
    if settings.base_url is not None and settings.api_key_env is None:
        os.environ["FACTORY_API_KEY_ENV"] = OWN_KEY  # not OpenAI's variable: that one stays at OpenAI
        os.environ[OWN_KEY] = api_key
    else:
        os.environ[settings.api_key_env or OPENAI_KEY] = api_key


def _begin_without_key() -> None:
    """Begin again with the same words but for the key: for as long as a process runs, all can read its words."""
    words = without_key(sys.orig_argv)
    if words != sys.orig_argv:
        os.execv(sys.executable, [sys.executable, *words[1:]])


def without_key(words: Sequence[str]) -> list[str]:
    """A command's words without ``--api-key`` and what follows it."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if KEY_FLAG not in (before, word) and not word.startswith(f"{KEY_FLAG}="):
            kept.append(word)
    return kept


def hide_loading_bar() -> None:
    """Keep transformers' own bar off the terminal: the command shows what it is doing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
