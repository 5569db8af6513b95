"""Pairs and their files: what is read back is what was written, and a bad line is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import load_configuration
from factory.errors import ConfigError, DatasetError
from factory.files import write_atomically
from factory.pairs.dataset import format_dataset, load_dataset, load_pairs, load_questions
from factory.pairs.pair import REQUIRED_FIELDS, ContrastivePair, cut_batches, make_pair_id, number_batches
from factory.pairs.styles import list_styles

# Whatever a person or a model may write, line breaks of every kind among it.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
pairs_of_a_style = st.lists(
    st.builds(
        ContrastivePair,
        question=texts,
        positive_response=texts,
        negative_response=texts,
        positive_prompt=texts,
        negative_prompt=texts,
        style=st.just("a_style"),
        batch=st.integers(0, 9),
        extra=st.dictionaries(st.sampled_from(["cost_usd", "checks"]), st.integers()),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda pair: pair.pair_id,
)


def make_pairs(n, batch=None):
    return [ContrastivePair(f"question {i}", f"Step 1: {i}", f"plain {i}", style="s", batch=batch) for i in range(n)]


@given(pairs_of_a_style)
def test_a_dataset_reads_back_as_it_was_written(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("datasets") / "a_style_pairs.jsonl"
    path.write_bytes(format_dataset(pairs, {"style_name": "a_style", "model_used": "m"}).encode())
    metadata, read = load_dataset(path)
    assert read == pairs
    assert [pair.extra for pair in read] == [pair.extra for pair in pairs]
    assert metadata == {"type": "metadata", "style_name": "a_style", "model_used": "m", "total_pairs": len(pairs)}


def test_a_dataset_starts_with_its_metadata_and_the_required_fields_in_order():
    first, second = format_dataset([make_pairs(1, batch=3)[0]], {"style_name": "s"}).splitlines()
    assert json.loads(first) == {"type": "metadata", "style_name": "s", "total_pairs": 1}
    assert list(json.loads(second)) == [*REQUIRED_FIELDS, "batch"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "line 3: not JSON"),
        ("[1, 2]", "line 3: expected a JSON object, found list"),
        ('{"question": "q"}', "line 3: field 'positive_prompt' is missing"),
        (json.dumps(dict.fromkeys(REQUIRED_FIELDS, 7)), "line 3: field 'question' should be text, found int"),
        (json.dumps(make_pairs(1)[0].to_json() | {"pair_id": "x", "batch": -1}), "line 3: field 'batch' should be"),
        (json.dumps(make_pairs(1)[0].to_json() | {"pair_id": "x", "batch": True}), "line 3: field 'batch' should be"),
        (json.dumps(make_pairs(1)[0].to_json()), "line 3: pair_id 's-"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "s_pairs.jsonl"
    path.write_text(format_dataset(make_pairs(1), {"style_name": "s"}) + line + "\n")
    with pytest.raises(DatasetError) as caught:
        load_pairs(path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"type": "metadata"}\n', b"\xff\xfe\x00bad"])
def test_a_dataset_without_pairs_is_refused(tmp_path, content):
    path = tmp_path / "s_pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="s_pairs.jsonl"):
        load_pairs(path)


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere.jsonl' does not exist"):
        load_pairs(tmp_path / "nowhere.jsonl")


@given(st.text(max_size=20), st.text(max_size=60))
def test_a_pair_id_is_the_same_everywhere_and_differs_by_question(style, question):
    assert make_pair_id(style, question) == make_pair_id(style, question)
    assert make_pair_id(style, question) != make_pair_id(style, question + "?")


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 40))
def test_more_pairs_add_batches_and_change_none(before, size, more):
    old = number_batches(make_pairs(before), size)
    grown = make_pairs(before + more)
    new = old + number_batches(grown[before:], size, start=old[-1].batch + 1)
    old_batches, new_batches = cut_batches(old, size), cut_batches(new, size)
    assert new_batches[: len(old_batches)] == old_batches
    assert [pair for batch in new_batches for pair in batch] == new


@given(st.integers(0, 60), st.integers(1, 20))
def test_pairs_without_a_number_are_cut_into_neighbours(n, size):
    batches = cut_batches(make_pairs(n), size)
    assert [pair for batch in batches for pair in batch] == make_pairs(n)
    assert all(len(batch) == size for batch in batches[:-1])


def test_questions_lose_comments_blanks_and_repeats_and_keep_their_order(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("# a comment\nWhy?\n\n  How?  \n  # another\nWhy?\nWhat is C#?\n")
    assert load_questions(path) == ["Why?", "How?", "What is C#?"]


@pytest.mark.parametrize("content", ["", "\n \n", "# only a comment\n"])
def test_an_empty_question_list_is_refused(tmp_path, content):
    path = tmp_path / "questions.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no question"):
        load_questions(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, 7)  # neither text nor bytes: fails while the new file is being written
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "cannot replace a folder")
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_a_dataset_whose_builder_numbers_its_pairs_is_read_in_its_order(tmp_path):
    lines = [{"type": "metadata", "style_name": "s", "total_pairs": 3}]
    for n in range(3):
        line = {name: f"{name} {n}" for name in REQUIRED_FIELDS} | {"pair_id": n}
        lines.append(line)
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [pair.pair_id for pair in load_pairs(path)] == ["0", "1", "2"]
    path.write_text(path.read_text() + json.dumps(lines[-1] | {"pair_id": "2"}) + "\n")
    with pytest.raises(DatasetError, match="appears twice"):
        load_pairs(path)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_question_file_of_any_editor_is_read_the_same(tmp_path, mark, ends):
    file = tmp_path / "q.txt"
    file.write_bytes((mark + ends.join(["# mine", "Why is it so? é", ""])).encode())
    assert load_questions(file) == ["Why is it so? é"]


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (load_questions, "question file"),
        (load_pairs, "dataset"),
        (lambda path: load_configuration(path, environment={}), "configuration file"),
        (lambda path: list_styles(path.parent), "style file"),
    ],
)
def test_a_file_that_is_not_utf8_is_refused_in_words(tmp_path, read, kind):
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"{kind}.*is not UTF-8 \(byte 9\): save it as UTF-8"):
        read(file)
