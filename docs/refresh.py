"""Rewrite the generated parts of the documents: the file tree, the help texts, the table of settings.

``python docs/refresh.py`` rewrites, ``python docs/refresh.py --check`` only compares (exit status 1
where a part is stale). A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
from pydantic import BaseModel

from factory.cli import COMMANDS, svf
from factory.config import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "commands.md", ROOT / "docs" / "settings.md")
PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
WIDTH = 100
ROOMS = {
    "factory": (
        *("pairs", "teacher", "target", "extraction", "vector", "learning"),  # as the data flows
        *("evaluation", "benchmark"),
        *("run", "planning", "steps", "report", "cluster", "serving", "vllm", "commands", "data"),
    ),
    "workers": ("flow",),
}
# Modules beside the rooms that tell how the factory is used; the others are named in one line.
DOORS = {"factory": ("pipeline", "cli", "celery", "config", "store"), "workers": ("teacher", "gpu", "reduce")}
OTHERS = {
    "config.yaml": "every setting with its unit and default; config_cpu.yaml: those of a laptop, no key, GPU or hub",
    "datasets/": "starter pairs of the three built-in styles; questions/: for new pairs, and others for evaluation",
    "tests/": "pytest; 'make test' runs all but the slow ones",
    "benchmarks/": "speed of extraction, orchestration and rate limits; quality and cost of learning",
    "examples/": "programs that use the library and the server",
    "docs/": "design, formats, operations, decisions",
    "docker-compose.yml": "broker, workers, Flower on one host or several",
    "Makefile": "make demo, make test, make lint, make chaos; .ci/run: what a change must pass",
}


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", maxsplit=1)[0].removesuffix(".").replace("``", "")


def tree() -> str:
    """The rooms in the order in which data flows through them, each with what it is for."""
    rows: list[tuple[str, str]] = []
    for package, rooms in ROOMS.items():
        rows.append((f"{package}/", first_line(ROOT / package / "__init__.py")))
        rows += [(f"  {room}/", first_line(ROOT / package / room / "__init__.py")) for room in rooms]
        rows += modules(package)
    rows += [(name, what or first_line(ROOT / name)) for name, what in OTHERS.items()]
    width = max(len(name) for name, _ in rows) + 2
    return "```text\n" + "".join(f"{name:<{width}}{what}\n" for name, what in rows) + "```\n"


def modules(package: str) -> list[tuple[str, str]]:
    """A package's modules beside its rooms: its doors line by line, all others in one."""
    doors = [ROOT / package / f"{name}.py" for name in DOORS[package]]
    rest = sorted({path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", *DOORS[package]})
    rows = [(f"  {path.name}", first_line(path)) for path in doors]
    return rows + ([("  *.py", f"what all rooms stand on: {', '.join(rest)}")] if rest else [])


def context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """The context in which ``svf`` shows a command's help; ``parent`` gives it the same help options."""
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    return command.make_context(name, [], parent=parent, resilient_parsing=True, **width)


def overview() -> str:
    """``svf --help``."""
    return f"```text\n{svf.get_help(context(svf, 'svf'))}\n```\n"


def commands() -> str:
    """The help text of every command."""
    group = context(svf, "svf")
    parts = []
    for name in COMMANDS:
        command = svf.get_command(group, name)
        assert command is not None, name
        parts.append(f"## svf {name}\n\n```text\n{command.get_help(context(command, name, group))}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting with its default and what it means."""
    return "| key | default | meaning |\n|---|---|---|\n" + "".join(rows_of(Settings, ""))


def rows_of(section: type[BaseModel], prefix: str) -> list[str]:
    """The table's rows of one section, those of inner sections after its own."""
    own, inner = [], []
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            inner += rows_of(type(field.default), f"{name}.")
            continue
        default = json.dumps(field.default, ensure_ascii=False)
        own.append(f"| `{prefix}{name}` | `{default}` | {field.description} |\n")
    return own + inner


PARTS: dict[str, Callable[[], str]] = {
    "tree": tree,
    "overview": overview,
    "commands": commands,
    "settings": settings,
}


def refreshed(text: str) -> str:
    """``text`` with its generated parts as they should be now."""
    return PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[4], text)


def main() -> int:
    """Refresh the documents, or say which are stale."""
    stale = [
        path for path in DOCUMENTS if refreshed(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")
    ]
    if "--check" in sys.argv:
        print("\n".join(f"{path.relative_to(ROOT)} is stale: python docs/refresh.py" for path in stale))
        return 1 if stale else 0
    for path in stale:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{path.relative_to(ROOT)} refreshed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
