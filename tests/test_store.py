"""The store: writes are whole, damage is noticed, and no key leads outside."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import ConfigError, StoreError
from factory.files import hash_of
from factory.store import Store

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    return Store(str(tmp_path_factory.mktemp("store")))


@given(json_values)
def test_json_reads_back_as_it_was_written(shared_store, content):
    digest = shared_store.write_json("a/b.json", content)
    assert shared_store.read_json("a/b.json") == content
    assert digest == hash_of(content)


@given(st.binary(max_size=200))
def test_sealed_bytes_read_back_as_they_were_written(shared_store, content):
    shared_store.write_sealed("x.bin", content)
    assert shared_store.read_sealed("x.bin") == content


@given(st.binary(min_size=1, max_size=60), st.data())
def test_any_changed_byte_of_a_sealed_artifact_is_noticed(shared_store, content, data):
    shared_store.write_sealed("x.bin", content)
    path = Path(shared_store.path("x.bin"))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="damaged"):
        shared_store.read_sealed("x.bin")


@given(json_values, st.data())
def test_a_json_artifact_cut_short_is_noticed(shared_store, content, data):
    shared_store.write_json("y.json", content)
    path = Path(shared_store.path("y.json"))
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(StoreError, match="damaged"):
        shared_store.read_json("y.json")


def test_changed_json_content_is_noticed(store):
    store.write_json("y.json", {"pairs": 3})
    path = Path(store.path("y.json"))
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(StoreError, match="SHA-256 does not match"):
        store.read_json("y.json")


@given(st.dictionaries(st.text(), st.integers(), max_size=6))
def test_equal_content_has_equal_hashes_whatever_its_order(content):
    reversed_content = dict(reversed(content.items()))
    assert hash_of(content) == hash_of(reversed_content)


def test_the_same_content_is_kept_once(store):
    first = store.put_json("pairs", {"a": 1, "b": 2})
    written = os.stat(store.path(first)).st_mtime_ns
    assert store.put_json("pairs", {"b": 2, "a": 1}) == first
    assert os.stat(store.path(first)).st_mtime_ns == written
    assert store.names("pairs") == [first.removeprefix("pairs/")]


@pytest.mark.parametrize(
    "key",
    ["../out", "a/../../out", "/etc/passwd", "a//b", "a/./b", "..", "a\\b", "", "a/", "a\n", "a b", ".hidden", "~/x"],
)
def test_a_key_cannot_leave_the_store(store, key):
    for use in (store.read, store.exists, store.delete, lambda k: store.write(k, b"")):
        with pytest.raises(StoreError, match="not allowed"):
            use(key)


@given(st.text(max_size=30))
def test_every_key_is_refused_or_lies_inside(shared_store, key):
    try:
        path = shared_store.path(key)
    except StoreError:
        return
    assert Path(path).resolve().is_relative_to(Path(shared_store.root).resolve())


def test_what_is_not_there_is_none_and_required_is_an_error(store):
    assert store.read("a") is None
    assert store.read_json("a.json") is None
    assert store.read_sealed("a.bin") is None
    assert not store.exists("a")
    assert store.names("folder") == []
    store.delete("a")
    with pytest.raises(StoreError, match="missing"):
        store.require_json("a.json")


def test_a_failed_write_leaves_the_old_content_and_no_scrap(store):
    store.write("folder/a", b"old")
    with pytest.raises(TypeError):
        store.write("folder/a", "text is not bytes")
    assert store.read("folder/a") == b"old"
    assert os.listdir(os.path.dirname(store.path("folder/a"))) == ["a"]


def _write_for_ever(url: str) -> None:
    store = Store(url)
    while True:
        for letter in (b"a", b"b"):
            store.write("big", letter * 3_000_000)


def test_a_reader_sees_old_or_new_bytes_also_when_the_writer_is_killed(store):
    store.write("big", b"a" * 3_000_000)
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(store.url,))
    writer.start()
    seen = set()
    while len(seen) < 2:
        content = store.read("big")
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
        seen.add(content[:1])
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    content = store.read("big")
    assert len(content) == 3_000_000
    assert len(set(content)) == 1
    assert store.names() == ["big"]  # a scrap of the killed writer is no artifact


def test_foreign_files_in_the_folder_are_no_artifacts(store):
    store.write("mine", b"")
    for name in (".DS_Store", "my notes.txt", "x.tmp"):
        (Path(store.root) / name).touch()
    assert store.names() == ["mine"]


def test_an_unknown_kind_of_url_is_refused_with_its_remedy():
    with pytest.raises(ConfigError, match="nonsense://"):
        Store("nonsense://bucket/x")


def test_a_file_url_and_a_plain_folder_are_the_same_store(tmp_path):
    Store(str(tmp_path)).write("a", b"1")
    assert Store(f"file://{tmp_path}").read("a") == b"1"
    assert Store(f"file://{tmp_path}").is_local


def test_an_object_store_that_cannot_be_reached_is_a_store_error_whatever_is_asked_of_it(monkeypatch):
    """botocore's errors are no OSError; a worker waits for a store, but fails of anything else."""
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = Store("s3://bucket/runs")
    store.files.retries = 1
    uses = (store.read, store.exists, store.delete, store.names, lambda key: store.write(key, b"1"))
    for use in (*uses, lambda key: store.write_pieces(key, [b"1"])):
        with pytest.raises(StoreError, match="s3://bucket/runs"):
            use("a")


def test_the_memory_of_another_file_system_serves_as_well():
    store = Store("memory://a-store")
    store.write_json("a/b.json", {"x": 1})
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.names("a") == ["b.json"]
    assert not store.is_local
    assert json.loads(store.read("a/b.json"))["content"] == {"x": 1}


def test_a_storage_that_fails_to_tell_a_file_s_age_ends_no_task(monkeypatch):
    class LinkLost(Exception):  # as botocore's: no OSError
        pass

    def fail(self, path):
        raise LinkLost

    store = Store("memory://ages")
    store.write("run.json", b"{}")
    assert store.modified_at("run.json") > 0

    monkeypatch.setattr(type(store.files), "modified", fail)

    assert store.modified_at("run.json") == 0.0
