"""The documents say what is so: generated parts are fresh, links lead somewhere, the first program is the real one."""

import ast
import importlib.util
import re

import pytest

from factory.cli import COMMANDS
from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_PROGRAM = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture(scope="module")
def refresh():
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/commands.md", "docs/settings.md"])
def test_generated_parts_are_fresh(refresh, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert refresh.PART.search(text)
    assert refresh.refreshed(text) == text, "stale: run 'python docs/refresh.py'"


@pytest.mark.parametrize("package", ["factory", "workers"])
def test_the_tree_of_the_readme_shows_every_room(refresh, package):
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms <= set(refresh.ROOMS[package]), "name it in docs/refresh.py, where the data flows through it"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_documents_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{path.name}: {target}"


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readmes_first_program_is_the_example():
    assert (ROOT / "examples" / "first_vector.py").read_text(encoding="utf-8") == FIRST_PROGRAM


def test_the_names_that_the_first_program_imports_exist():
    import factory

    names = [
        alias.name
        for node in ast.walk(ast.parse(FIRST_PROGRAM))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert names
    for name in names:
        assert getattr(factory, name)


def test_commands_named_in_the_documents_exist():
    for path in DOCUMENTS:
        for name in re.findall(r"`svf ([a-z]+)\b", path.read_text(encoding="utf-8")):
            assert name in COMMANDS, f"{path.name}: svf {name}"
