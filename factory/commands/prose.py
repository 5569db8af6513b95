"""Sentences on a terminal and in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say(console: Console, sentence: str | Text) -> None:
    """Print a sentence: between words a terminal begins a new line, and a pipe gets one line that can be searched.

    A path or a command is to be copied, and is printed with ``soft_wrap`` instead: no space gets into it.
    """
    console.print(sentence, markup=False, soft_wrap=not console.is_terminal)
