"""Where ``svf serve`` finds vectors: in a folder, an output folder, a store of runs, on S3."""

import shutil

import fsspec
import pytest

from factory.errors import VectorError
from factory.serving import library
from factory.serving.library import VectorLibrary
from tests.serving.test_server import named_vector


@pytest.fixture
def memory():
    """A file system that is not a folder: keys in memory."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def put(files, path, vector, folder):
    local = folder / "one.pt"
    vector.save(local)
    files.pipe_file(path, local.read_bytes())


def strengths(found):
    return {name: vector.metadata.get("recommended_strength") for name, vector in found.vectors.items()}


def test_of_a_store_the_latest_vector_of_each_style_is_offered(memory, target, tmp_path):
    for run, style, strength in (
        ("20261123-155231-abbd", "calm", 1.0),
        ("20261123-155231-abbd", "bold", 2.0),
        ("20261124-080000-0a0b", "calm", 3.0),
    ):
        vector = named_vector(target, style, 1, recommended_strength=strength)
        put(memory, f"/runs/{run}/{style}/vector.pt", vector, tmp_path)
        memory.pipe_file(f"/runs/{run}/run.json", b"{}")
    memory.pipe_file("/runs/20261125-000000-ffff/calm/batches.json", b"{}")  # under way
    memory.pipe_file("/runs/batches/0123.safetensors", b"differences")
    found = VectorLibrary(["memory://runs"])
    assert strengths(found) == {"calm": 3.0, "bold": 2.0}
    assert found.refused == {}
    put(memory, "/runs/20261125-000000-ffff/calm/vector.pt", named_vector(target, "calm", 2), tmp_path)
    found.reload()
    assert strengths(found) == {"calm": None, "bold": 2.0}
    assert set(VectorLibrary(["memory://runs/20261124-080000-0a0b/calm/vector.pt"]).vectors) == {"calm"}


def test_of_an_output_folder_the_vectors_are_offered_once(target, tmp_path):
    folder = tmp_path / "out" / "steering_vectors"
    folder.mkdir(parents=True)
    for ending in ("pt", "safetensors"):
        named_vector(target, "calm", 1).save(folder / f"calm.{ending}")
    (tmp_path / "out" / "runs" / "20261123-155231-abbd" / "old").mkdir(parents=True)
    named_vector(target, "old", 3).save(tmp_path / "out" / "runs" / "20261123-155231-abbd" / "old" / "vector.pt")
    assert set(VectorLibrary([str(tmp_path / "out")]).vectors) == {"calm"}
    assert set(VectorLibrary([str(tmp_path / "out" / "runs")]).vectors) == {"old"}


def test_vectors_of_one_style_have_names_that_tell_them_apart(target, tmp_path):
    for number, place in enumerate(("a/vector.pt", "b/vector.pt", "c/vector.pt")):
        (tmp_path / place).parent.mkdir()
        named_vector(target, "calm", number).save(tmp_path / place)
    found = VectorLibrary([str(tmp_path / name) for name in "abc"])
    assert set(found.vectors) == {"calm", "vector", "calm-2"}


def test_a_source_out_of_reach_keeps_what_it_gave_and_says_so_at_the_start(
    memory, target, tmp_path, monkeypatch, caplog
):
    put(memory, "/vectors/calm.pt", named_vector(target, "calm", 1), tmp_path)
    found = VectorLibrary(["memory://vectors"])

    def lost(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(type(memory), "ls", lost)
    found.reload()
    assert set(found.vectors) == {"calm"}
    assert "no route" in caplog.text
    with pytest.raises(VectorError, match="cannot be read: no route"):
        VectorLibrary(["memory://vectors"])
    with pytest.raises(VectorError, match="cannot be read"):
        VectorLibrary(["nosuch://vectors"])


def test_what_lies_afar_is_looked_at_less_often(memory, target, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(library.time, "monotonic", lambda: now[0])
    put(memory, "/vectors/calm.pt", named_vector(target, "calm", 1), tmp_path)
    afar, near = VectorLibrary(["memory://vectors"]), VectorLibrary([str(tmp_path)])
    put(memory, "/vectors/bold.pt", named_vector(target, "bold", 2), tmp_path)
    shutil.move(tmp_path / "one.pt", tmp_path / "two.pt")
    for seconds, expected in ((1.0, ("calm", "calm")), (3.0, ("calm", "bold")), (31.0, ("bold", "bold"))):
        now[0] = 1000.0 + seconds
        afar.refresh()
        near.refresh()
        assert tuple(min(one.vectors) for one in (afar, near)) == expected, seconds


@pytest.mark.slow
def test_a_bucket_is_a_folder_too(s3, target, tmp_path, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    put(files, "factory/served/vectors/calm.pt", named_vector(target, "calm", 1), tmp_path)
    put(files, "factory/served/runs/20261123-155231-abbd/bold/vector.pt", named_vector(target, "bold", 2), tmp_path)
    found = VectorLibrary(["s3://factory/served/vectors", "s3://factory/served/runs"])
    assert set(found.vectors) == {"calm", "bold"}
    put(files, "factory/served/vectors/calm.pt", named_vector(target, "calm", 7, recommended_strength=4.0), tmp_path)
    found.reload()
    assert strengths(found)["calm"] == 4.0
