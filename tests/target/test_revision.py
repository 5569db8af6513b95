"""A revision tells weights apart, and a kept hash is never an old one."""

from __future__ import annotations

import os

import pytest

from factory.target import revision
from factory.target.revision import are_comparable, folder_revision, is_same_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORY_CACHE_DIR", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(5_000_000))
    (model / "config.json").write_text("{}")
    return model


def test_one_changed_byte_in_the_middle_of_a_large_file_is_another_revision(folder):
    before = folder_revision(folder)
    with (folder / "model.safetensors").open("r+b") as file:  # in place: size and inode stay
        file.seek(2_500_000)
        file.write(b"x")

    assert folder_revision(folder) != before


def test_what_generation_and_configuration_say_is_part_of_the_revision_and_a_tokenizer_is_not(folder):
    first = folder_revision(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert folder_revision(folder) == first
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.2}')
    assert folder_revision(folder) != first


def test_a_settled_file_is_hashed_once_and_a_damaged_note_of_it_is_not_believed(folder, monkeypatch):
    monkeypatch.setattr(revision, "SETTLED", -1.0)
    first = folder_revision(folder)
    notes = list((folder.parent / "cache" / "hashes").iterdir())
    assert len(notes) == 2
    for note in notes:
        note.write_text("0" * 64 + " 12345678\n")

    assert folder_revision(folder) == first


def test_a_file_that_changed_a_moment_ago_leaves_no_note(folder):
    folder_revision(folder)

    assert not (folder.parent / "cache" / "hashes").exists()


def test_only_revisions_of_one_kind_are_held_against_each_other():
    assert are_comparable("a" * 32, "b" * 32)
    assert are_comparable("a" * 40, "b" * 40)
    assert not are_comparable("a" * 32, "b" * 40)
    assert not are_comparable("0123456789abcdef", "0123456789abcdee")  # of versions that looked at parts of files
    assert not are_comparable(None, "a" * 32)


def test_two_spellings_of_a_folder_are_one_model(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for spelling in (f"{folder}{os.sep}", "model", "./model", "../" + folder.parent.name + "/model"):
        assert is_same_model(str(folder), spelling)
    assert not is_same_model(str(folder), str(folder.parent))
    assert not is_same_model("somebody/model", "somebody/other")
