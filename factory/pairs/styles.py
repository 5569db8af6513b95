"""A style: how the target model should reason, and how to recognise that it does.

One YAML file a style. Built-in ones lie in ``factory/data``; a folder named by ``styles_dir``
adds more, and a file there wins over a built-in of the same name. This module does not know
where questions or pairs come from.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from factory.errors import ConfigError, UnknownStyle
from factory.files import read_written
from factory.frozen import Frozen

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


def check_style_name(name: str) -> str:
    """Return ``name`` if it can be a file name everywhere.

    Raises:
        ConfigError: it holds a path separator or another character that is not allowed.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"style name {name!r} is not allowed: use letters, digits, '_' and '-' (at most 64), "
            "starting with a letter or digit"
        )
    return name


class StrengthModulation(Frozen):
    """Three strengths that a person can name."""

    low: float = 0.5
    medium: float = 1.0
    high: float = 1.5


class Style(Frozen):
    """A way to reason, as one YAML file describes it.

    ``positive_prompt`` and ``negative_prompt`` are paraphrases of one instruction to the teacher;
    each holds ``{question}``. ``markers`` are regular expressions; an answer with at least
    ``min_markers`` matches is in the style. ``openings`` are texts with which such an answer
    starts.
    """

    name: str
    description: str
    characteristics: Texts = ()
    use_cases: Texts = ()
    positive_prompt: Annotated[Texts, Field(min_length=1)]
    negative_prompt: Annotated[Texts, Field(min_length=1)]
    system_instruction: str = ""
    reasoning_pattern: str = ""
    strength_modulation: StrengthModulation = StrengthModulation()
    example_phrases: Texts = ()
    cognitive_markers: Texts = ()
    markers: Texts = ()
    min_markers: Annotated[int, Field(ge=1)] = 2
    openings: Texts = ()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError("use letters, digits, '_' and '-', starting with a letter or digit")
        return name

    @field_validator("positive_prompt", "negative_prompt")
    @classmethod
    def _prompts_hold_the_question(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if "{question}" not in prompt:
                raise ValueError("each prompt must hold the placeholder {question}")
        return prompts

    @field_validator("markers")
    @classmethod
    def _markers_compile(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        for marker in markers:
            try:
                re.compile(marker)
            except re.error as error:
                raise ValueError(f"marker {marker!r} is not a regular expression: {error}") from None
        return markers

    def prompts_for(self, question: str) -> tuple[str, str]:
        """The positive and the negative prompt for ``question``: one paraphrase of each.

        Which one depends on the question alone, so that a vector does not encode one wording
        and a second run asks the same.
        """
        draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big")
        positive = self.positive_prompt[draw % len(self.positive_prompt)]
        negative = self.negative_prompt[draw % len(self.negative_prompt)]
        return positive.replace("{question}", question), negative.replace("{question}", question)

    def instruction(self) -> str:
        """What to tell a model that should answer in this style."""
        return self.system_instruction or self.description

    def count_markers(self, text: str) -> int:
        """How many times ``text`` shows a marker of this style."""
        return sum(1 for _ in find_markers(self.markers, text))

    def is_shown_in(self, text: str) -> bool:
        """Whether ``text`` is in the style, judged by its markers."""
        return self.count_markers(text) >= self.min_markers


def find_markers(markers: Iterable[str], text: str) -> Iterator[re.Match[str]]:
    """Where ``text`` shows ``markers``, which are regular expressions: in any case, ``^`` at each line."""
    return (match for marker in markers for match in re.finditer(marker, text, re.IGNORECASE | re.MULTILINE))


def parse_style(text: str, source: str) -> Style:
    """Read one style from YAML ``text``; ``source`` names it in errors.

    Raises:
        ConfigError: not YAML, a missing or unknown key, a wrong type.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} should hold a mapping of keys, found {type(content).__name__}")
    content.setdefault("name", Path(source).stem)
    try:
        return Style.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{source}: key '{key}': {problem['msg']}") from None


def list_styles(styles_dir: str | Path | None = None) -> dict[str, Style]:
    """All styles by name: the built-in ones, then those of ``styles_dir``.

    Raises:
        ConfigError: ``styles_dir`` is no folder, or a file in it is not a style.
    """
    files = [entry for entry in resources.files("factory.data").iterdir() if entry.name.endswith(".yaml")]
    styles = [parse_style(entry.read_text(encoding="utf-8"), entry.name) for entry in files]
    if styles_dir is not None:
        folder = Path(styles_dir)
        if not folder.is_dir():
            raise ConfigError(f"styles_dir {str(folder)!r} is not a folder")
        own = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
        styles += [parse_style(read_written(path, "style file"), str(path)) for path in own]
    return {style.name: style for style in sorted(styles, key=lambda style: style.name)}


def load_style(name: str, styles_dir: str | Path | None = None) -> Style:
    """The style called ``name``.

    Raises:
        UnknownStyle: there is none; the message names the nearest one.
    """
    check_style_name(name)
    styles = list_styles(styles_dir)
    if name in styles:
        return styles[name]
    near = difflib.get_close_matches(name, styles, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownStyle(
        f"unknown style {name!r}.{hint} Known: {', '.join(styles)}. "
        "A YAML file in the folder named by styles_dir adds one."
    )
