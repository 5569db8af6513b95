"""The wheel: complete, small, without torch, and alike from any folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, STYLES

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]
LEFT_OUT = (".git", ".venv*", "out", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "runs")


def run(*words, **how):
    ended = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **how
    )
    assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def size(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout, so that no earlier build leaks into it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", folder / "source")
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """The programs of a clean environment with the wheel and its base dependencies."""
    venv = tmp_path_factory.mktemp("base") / "venv"
    run(sys.executable, "-m", "venv", venv)
    bare = size(venv)
    run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    print(f"\nwheel {wheel.stat().st_size / 1e6:.2f} MB, base environment {(size(venv) - bare) / 1e6:.0f} MB")
    return venv / "bin"


def test_the_wheel_holds_code_settings_styles_pairs_and_questions(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"factory/celeryconfig.py", "factory/cli.py", "factory/py.typed", "workers/flow/submit.py"} <= names
    assert {f"factory/data/{style}.yaml" for style in STYLES} <= names
    assert {f"factory/data/datasets/{style}_pairs.jsonl" for style in STYLES} <= names
    assert {"factory/data/questions/default.txt", "factory/data/questions/heldout.txt"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {str(p.relative_to(ROOT)) for top in ("factory", "workers") for p in (ROOT / top).rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    assert not {name for name in names if name.split("/")[0] not in ("factory", "workers")}


def test_the_app_is_found_from_anywhere(bin_folder):
    report = run(bin_folder / "celery", "-A", "factory", "report", cwd="/")
    assert "task_acks_late: True" in report
    assert "reject_on_worker_lost: True" in report


def test_svf_lists_styles_and_shipped_pairs_from_anywhere(bin_folder):
    listed = run(bin_folder / "svf", "styles", cwd="/")
    for style in STYLES:
        assert f"{style} " in listed
    assert "48" in listed


def test_the_base_environment_has_no_torch_and_says_so_where_it_is_needed(bin_folder, tmp_path):
    packages = run(bin_folder / "python", "-m", "pip", "list", cwd="/").lower()
    assert "torch" not in packages
    assert "transformers" not in packages
    ended = subprocess.run([bin_folder / "svf", "generate"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "[target]" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_teacher_worker_starts_without_torch(bin_folder, broker, tmp_path):
    worker = subprocess.Popen(
        [bin_folder / "celery", "-A", "factory", "worker", "-Q", "teacher", "-n", "base@%h", "-l", "info"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "FACTORY_BROKER_URL": broker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        for line in worker.stderr:
            said.append(line)
            if "ready" in line:
                break
        assert "ready" in said[-1], "".join(said)
    finally:
        worker.terminate()
        worker.wait(30)
