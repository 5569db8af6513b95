"""Imports point one way, and a machine without torch can run the teacher's part."""

import ast
import os
import subprocess
import sys
from functools import cache

import pytest

from tests.conftest import ROOT

FORBIDS_TORCH = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "accelerate", "numpy", "matplotlib"}:
            raise ModuleNotFoundError(f"{name} is not part of the base install", name=name)
sys.meta_path.insert(0, Forbid())
"""
SOURCES = sorted([*(ROOT / "factory").rglob("*.py"), *(ROOT / "workers").rglob("*.py")])
QUEUE_SIDE = {"factory.celery", "factory.celeryconfig", "factory.cluster.worker", "factory.cli"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [module_name(path) for path in SOURCES]
KNOWN = set(MODULES)
ROOMS = {m for m in MODULES if (ROOT / m.replace(".", "/")).is_dir()} | set(MODULES)
# A run stands above the rooms in which the data flows, and the rooms of a run are these.
RUN = {f"factory.{room}" for room in ("run", "planning", "steps", "report", "cluster", "commands")} | {
    "workers",
    "workers.flow",
}


# Modules of the target that need this environment's transformers.
LOADED = {"factory.target.model", "factory.target.loading", "factory.target.kv"}


@cache
def imports_of(module, at_start_only=False):
    """Full names of what a module imports; with ``at_start_only`` not those inside functions or for types."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.update({f"{node.module}.{alias.name}" for alias in node.names} | {node.module})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def tops(module, **how):
    return {name.split(".")[0] for name in imports_of(module, **how)}


def run_python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env=dict(os.environ) | environment,
    )


def room_of(module):
    """The folder in which a module lies: ``factory.pairs``, ``workers.flow``, ``factory`` for the ground."""
    parts = module.split(".")
    return ".".join(parts[:2]) if (ROOT / "/".join(parts[:2])).is_dir() else parts[0]


def reached(module):
    """All modules of ours that ``module`` needs, directly or through others; also inside functions."""
    found, waiting = set(), [module]
    while waiting:
        for name in imports_of(waiting.pop()):
            if name in KNOWN and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def test_only_the_queue_side_imports_celery():
    allowed = {m for m in MODULES if m.startswith(("workers", "factory.commands"))} | QUEUE_SIDE
    users = {m for m in MODULES if tops(m) & {"celery", "kombu", "billiard"}}
    assert users <= allowed
    at_start = {m for m in users if tops(m, at_start_only=True) & {"celery", "kombu", "billiard"}}
    assert not {m for m in at_start if m.startswith("factory.commands")}, "a command imports celery when it runs"


def test_the_library_never_imports_the_workers():
    users = {m for m in MODULES if m.startswith("factory") and "workers" in tops(m)}
    assert users <= {m for m in MODULES if m.startswith("factory.commands")}
    assert not {m for m in users if "workers" in tops(m, at_start_only=True)}


def test_no_domain_module_imports_the_terminal_or_the_queue():
    shell = ("factory.cli", "factory.commands", "factory.celery", "factory.cluster.embedded", "factory.cluster.worker")
    for module in MODULES:
        if module.startswith("factory") and not module.startswith(shell):
            assert not {name for name in imports_of(module) if name.startswith(shell)}, module


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("factory.pairs", RUN | {"factory.teacher", "factory.target", "factory.extraction", "factory.vector"}),
        ("factory.teacher", RUN | {"factory.target", "factory.extraction", "factory.vector", "factory.evaluation"}),
        ("factory.target", RUN | {"factory.teacher", "factory.extraction", "factory.vector"}),
        ("factory.extraction", RUN | {"factory.teacher", "factory.evaluation"}),
        ("factory.vector", RUN | {"factory.evaluation"}),
        ("factory.learning", RUN | {"factory.teacher", "factory.evaluation"}),
        ("factory.evaluation", RUN | {"factory.benchmark"}),
        ("factory.benchmark", RUN),
        ("factory.serving", RUN | {"factory.teacher", "factory.evaluation"}),
        # vLLM's environment has a transformers of its own, and no queue.
        ("factory.vllm", RUN | LOADED | {"factory.teacher", "factory.evaluation"}),
        ("factory.report", {"factory.steps", "factory.commands", "workers", "workers.flow"}),
        ("factory.steps", {"factory.report", "factory.commands", "factory.cluster", "workers", "workers.flow"}),
        ("factory.store", {"factory.pairs"}),
        ("factory.errors", {room for room in ROOMS if room != "factory.errors"}),
    ],
)
def test_a_room_never_reaches_what_lies_behind_it(room, never):
    for module in (m for m in MODULES if m == room or m.startswith(room + ".")):
        entered = {name for name in reached(module) if name in never or room_of(name) in never}
        assert not entered, f"{module} reaches {', '.join(sorted(entered))}"


def test_only_the_target_and_the_reading_cache_know_the_cache_classes_of_transformers():
    users = {m for m in MODULES if any(name.startswith("transformers.cache_utils") for name in imports_of(m))}
    assert users == {"factory.target.kv", "factory.target.rows", "factory.extraction.cache"}


def circles(edges):
    """Every circle that a walk along ``edges`` (name -> names) runs into."""
    found, done, open_ = [], set(), []

    def visit(name):
        if name in open_:
            found.append(" -> ".join([*open_[open_.index(name) :], name]))
        elif name not in done:
            open_.append(name)
            for other in sorted(edges.get(name, ())):
                visit(other)
            open_.pop()
            done.add(name)

    for name in sorted(edges):
        visit(name)
    return found


def test_imports_have_no_circle_also_inside_functions():
    assert not circles({module: imports_of(module) & KNOWN - {module} for module in MODULES})


def test_rooms_have_no_circle():
    edges = {}
    for module in MODULES:
        here = room_of(module)
        for name in imports_of(module) & KNOWN:
            if not {"factory", "workers", here} & {room_of(name)} and here != "factory":
                edges.setdefault(here, set()).add(room_of(name))
    assert not circles(edges)


def test_folders_say_what_they_are_and_do_nothing():
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent.name not in ("factory", "data"):
            (only,) = ast.parse(path.read_text()).body
            assert isinstance(only, ast.Expr), path


@pytest.mark.parametrize(
    "module", ["workers.teacher", "workers.gpu", "workers.reduce", "workers.flow.submit", "factory.cli"]
)
def test_the_base_install_never_imports_torch(module):
    ended = run_python(f"{FORBIDS_TORCH}\nimport {module}")
    assert ended.returncode == 0, ended.stderr


def test_every_module_of_the_teachers_part_imports_without_torch():
    rooms = ("pairs", "teacher", "planning", "run", "cluster")
    names = [m for m in MODULES if m.startswith(tuple(f"factory.{room}." for room in rooms))]
    names += ["factory.steps.write", "factory.config", "factory.store", "factory.log"]
    ended = run_python(FORBIDS_TORCH + "\n".join(f"import {name}" for name in names))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("words", [["styles"], ["enqueue", "--help"], ["status", "--help"], ["config"], ["--help"]])
def test_svf_runs_without_torch(words, tmp_path):
    program = f"{FORBIDS_TORCH}\nsys.argv = ['svf', *{words!r}]\nfrom factory.cli import main\nmain()"
    ended = run_python(program)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("words", [["generate"], ["steer", "v.pt", "-p", "Why?"], ["show", "v.pt"]])
def test_what_needs_torch_says_so_without_it(words):
    program = f"{FORBIDS_TORCH}\nsys.argv = ['svf', *{words!r}]\nfrom factory.cli import main\nmain()"
    ended = run_python(program)
    assert ended.returncode == 2
    assert "pip install 'steering-vector-factory[target]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_app_finds_its_tasks_without_torch():
    program = FORBIDS_TORCH + (
        "from factory.celery import app\napp.loader.import_default_modules()\n"
        "print(sorted(name for name in app.tasks if name.startswith('workers.')))"
    )
    ended = run_python(program)
    assert "workers.gpu.extract_batch" in ended.stdout, ended.stderr
    assert "workers.teacher.write_pairs" in ended.stdout


def test_importing_the_package_does_no_work():
    program = "import sys, factory\nprint([m for m in ('torch', 'celery', 'openai', 'yaml') if m in sys.modules])"
    assert run_python(program).stdout.strip() == "[]"


def public_names():
    """Every public function and class at a module's top, with the modules that define it."""
    found = {}
    for module in MODULES:
        path = ROOT / (module.replace(".", "/") + ".py")
        for node in ast.parse(path.read_text()).body if path.exists() else ():
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(module)
    return found


# A command or a task, and the function that does its work, share the name a user types or reads in a queue.
SHARED_NAMES = {
    "cancel": {"factory.commands.runs", "workers.flow.submit"},
    "evaluate": {"factory.commands.evaluate", "factory.evaluation.examiner"},
    "extract_batch": {"workers.gpu", "factory.extraction.extract"},
    "generate": {"factory.commands.generate", "factory.vector.steer"},
    "resume": {"factory.commands.runs", "workers.flow.submit"},
    "watch": {"factory.commands.runs", "factory.commands.progress"},
}


def test_no_two_public_names_are_the_same_but_those_of_a_command_and_what_it_calls():
    assert {name: modules for name, modules in public_names().items() if len(modules) > 1} == SHARED_NAMES
