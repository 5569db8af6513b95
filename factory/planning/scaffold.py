"""The files from which a style of one's own is made: configuration, style and questions, to be edited.

The configuration is written from the settings themselves, so that it can name no key that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from factory.config import DEFAULT_FILE, Settings
from factory.errors import ConfigError
from factory.files import shipped_file, write_new
from factory.pairs.dataset import load_questions
from factory.pairs.heldout import find_asked
from factory.pairs.repeats import SAME_QUESTION, find_repeats
from factory.pairs.styles import check_style_name, parse_style
from factory.planning.specify import HELD_OUT_QUESTIONS
from factory.planning.supply import BUILT_IN_QUESTIONS
from factory.target.download import BUILT_IN
from factory.teacher.draft import Draft

STYLES, QUESTIONS = "styles", "questions.txt"
N_QUESTIONS = 24  # the draft's, and those that come with svf: enough pairs for a first vector
HEAD = """# Settings of the Steering Vector Factory. A key that is commented out has the default that it shows.
# FACTORY_<KEY> in the environment overrides a key, FACTORY_<SECTION>__<KEY> one of a section.
# Keys of the teacher's API are never written here: set OPENAI_API_KEY, or base_url for a server of your own.
"""
QUESTIONS_HEAD = "# Questions from which pairs are written, one per line. Replace them by those of your own field.\n"


@dataclass(frozen=True)
class Scaffold:
    """A folder to be, and the style that is begun there.

    ``draft``: what the teacher made of ``description``; None for a template. ``chosen``: settings that the
    configuration has beside those that every scaffold has.
    """

    folder: Path
    style: str
    description: str
    target_model: str = BUILT_IN
    chosen: Mapping[str, Any] | None = None
    draft: Draft | None = None

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The files: configuration, style, questions."""
        return self.folder / DEFAULT_FILE, self.folder / STYLES / f"{self.style}.yaml", self.folder / QUESTIONS

    def require_free(self) -> None:
        """Refuse to touch what exists.

        Raises:
            ConfigError: the style's name cannot be a file's, or one of the files exists already.
        """
        check_style_name(self.style)
        present = [str(path) for path in self.paths if path.exists()]
        if present:
            raise _exists(*present)

    def write(self) -> None:
        """Write the files.

        Raises:
            ConfigError: see :meth:`require_free`; or the description does not make a style.
        """
        self.require_free()
        questions = choose_questions(self.draft.questions if self.draft else ())
        texts = (
            describe_settings(self._settings()),
            describe_style(self.style, self.description, self.draft),
            QUESTIONS_HEAD + "\n".join(questions) + "\n",
        )
        for path, text in zip(self.paths, texts, strict=True):
            try:  # of two that begin here at once, one has the configuration and so the others
                write_new(path, text)
            except FileExistsError:
                raise _exists(str(path)) from None

    def _settings(self) -> Mapping[str, object]:
        return {
            **(self.chosen or {}),
            "styles": [self.style],
            "styles_dir": STYLES,
            "custom_questions_file": QUESTIONS,
            "target_model": self.target_model,
            "load_in_8bit": False,
            "extraction_config": {"target_layers": "all"},
        }


def _exists(*paths: str) -> ConfigError:
    state = "exist already, and stay as they are" if len(paths) > 1 else "exists already, and stays as it is"
    return ConfigError(f"{', '.join(paths)} {state}: name another folder")


def choose_questions(own: Sequence[str]) -> list[str]:
    """A style's ``own`` questions, then so many of those that come with svf; none of them twice, none held out."""
    asked = find_asked(load_questions(shipped_file("questions", HELD_OUT_QUESTIONS)), own)
    free = [question for question in own if question not in asked.values()]
    questions = [*free, *load_questions(shipped_file("questions", BUILT_IN_QUESTIONS))]
    repeats = find_repeats(questions, SAME_QUESTION, numbers_tell=True)
    return [question for at, question in enumerate(questions) if at not in repeats][:N_QUESTIONS]


def describe_style(name: str, description: str, draft: Draft | None = None) -> str:
    """A style's YAML from one line about it, and what the teacher made of that.

    Raises:
        ConfigError: the description does not make a style.
    """
    sentence = " ".join(description.split()).rstrip(".") + "."
    environment = Environment(
        loader=PackageLoader("factory", "data"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quoted"] = _quoted
    text = environment.get_template("style.yaml.j2").render(
        name=name,
        description=sentence,
        instruction=draft.instruction if draft else sentence,
        markers=draft.markers if draft else (),
        min_markers=draft.min_markers if draft else None,
        openings=draft.openings if draft else (),
    )
    parse_style(text, f"{name}.yaml")
    return text


def _quoted(text: str) -> str:
    """Text in YAML's single quotes, in which a backslash stands for itself."""
    return "'" + text.replace("'", "''") + "'"


def describe_settings(chosen: Mapping[str, Any]) -> str:
    """Every setting with what it means: ``chosen`` ones as lines, all others commented out with their default."""
    lines, sections = [HEAD], []
    for key, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            sections += _section(key, field.default, chosen.get(key, {}))
        else:
            lines.append(_line(key, chosen.get(key, field.default), field.description, is_chosen=key in chosen))
    return "\n".join([*lines, *sections]) + "\n"


def _section(name: str, defaults: BaseModel, chosen: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{name}:" if chosen else f"# {name}:"]
    for key, field in type(defaults).model_fields.items():
        line = _line(key, chosen.get(key, field.default), field.description, is_chosen=key in chosen)
        lines.append(f"  {line}" if key in chosen or chosen else line.replace("# ", "#   ", 1))
    return lines


def _line(key: str, value: Any, description: str | None, *, is_chosen: bool) -> str:
    plain = value.model_dump() if isinstance(value, BaseModel) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
    return f"{'' if is_chosen else '# '}{f'{key}: {text}':<40} # {description}"
