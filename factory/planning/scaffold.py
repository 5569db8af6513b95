"""The files from which a style of one's own is made: configuration, style and questions, to be edited.

The configuration is written from the settings themselves, so that it can name no key that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from factory.config import DEFAULT_FILE, Settings
from factory.errors import ConfigError
from factory.files import shipped_file, write_atomically
from factory.pairs.dataset import load_questions
from factory.pairs.styles import check_style_name, parse_style
from factory.target.download import BUILT_IN

STYLES, QUESTIONS = "styles", "questions.txt"
SHOWN_QUESTIONS = 24  # of those that come with svf, as a beginning: enough pairs for a first vector
HEAD = """# Settings of the Steering Vector Factory. A key that is commented out has the default that it shows.
# FACTORY_<KEY> in the environment overrides a key, FACTORY_<SECTION>__<KEY> one of a section.
# Keys of the teacher's API are never written here: set OPENAI_API_KEY, or base_url for a server of your own.
"""
QUESTIONS_HEAD = "# Questions from which pairs are written, one per line. Replace them by those of your own field.\n"


def write_scaffold(folder: Path, *, style: str, description: str, target_model: str = BUILT_IN) -> list[Path]:
    """Write a configuration, a style and questions into ``folder``; returns the files.

    Raises:
        ConfigError: the style's name cannot be a file's, or one of the files exists already.
    """
    check_style_name(style)
    made = {
        folder / DEFAULT_FILE: describe_settings(
            {
                "styles": [style],
                "styles_dir": STYLES,
                "custom_questions_file": QUESTIONS,
                "target_model": target_model,
                "load_in_8bit": False,
                "extraction_config": {"target_layers": "all"},
            }
        ),
        folder / STYLES / f"{style}.yaml": describe_style(style, description),
        folder / QUESTIONS: QUESTIONS_HEAD + "\n".join(_questions()) + "\n",
    }
    present = [str(path) for path in made if path.exists()]
    if present:
        raise ConfigError(f"{', '.join(present)} exists already, and is left as it is: name another folder or style")
    for path, text in made.items():
        write_atomically(path, text)
    return list(made)


def _questions() -> list[str]:
    return load_questions(shipped_file("questions", "default.txt"))[:SHOWN_QUESTIONS]


def describe_style(name: str, description: str) -> str:
    """A style's YAML from one line about it.

    Raises:
        ConfigError: the description does not make a style.
    """
    sentence = " ".join(description.split()).rstrip(".") + "."
    environment = Environment(
        loader=PackageLoader("factory", "data"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("style.yaml.j2").render(name=name, description=sentence)
    parse_style(text, f"{name}.yaml")
    return text


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
