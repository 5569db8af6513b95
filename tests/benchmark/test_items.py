"""Items: where they come from, how they are put, and how answers to them are extracted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.benchmark.extractor import as_number, extract, is_right
from factory.benchmark.item import Item
from factory.benchmark.sources import load_task
from factory.errors import BenchmarkError

NUMBER = Item(question="How many?", answer="1200")
CHOICE = Item(question="Which?", answer="B", choices=("a red door", "the moon", "a spoon", "nothing"))


@pytest.mark.parametrize(
    "said",
    [
        "1200",
        "So the answer is 1,200.",
        "#### 1200",
        r"Thus \boxed{1200}",
        "The final answer is: **1200** apples. There were 3 baskets.",
        "We add 200 and 1000. 200 + 1000 = 1200",
        "The answer is 7. No, wait: the answer is $1,200.00",
        "Result: 1200.0",
        "The answer is 3 x 400 = 1200.",
        "### Final Answer\n1,200\nThere were 3 steps.",
    ],
)
def test_a_number_is_found_however_it_is_stated(said):
    assert is_right(NUMBER, extract(NUMBER, said))


@pytest.mark.parametrize("said", ["", "I cannot tell.", "Twelve hundred"])
def test_a_text_without_a_number_is_unextractable_and_not_right(said):
    assert extract(NUMBER, said) is None
    assert not is_right(NUMBER, None)


@pytest.mark.parametrize("said", ["The answer is 120", "1200 and then 1201", "-1200", "The answer is 1200.5"])
def test_another_number_is_wrong(said):
    assert not is_right(NUMBER, extract(NUMBER, said))


@given(st.integers(-(10**9), 10**9))
def test_any_number_is_read_back_from_the_sentence_that_states_it(number):
    item = Item(question="?", answer=str(number))
    for said in (f"The answer is {number:,}.", f"x = 17, so #### {number}", f"First 5. Then {number}"):
        assert is_right(item, extract(item, said)), said


def test_fractions_and_money_are_numbers():
    assert as_number("3/4") == 0.75
    assert as_number("$3.50") == 3.5
    assert as_number("−2") == -2
    assert as_number("1/0") is None
    assert as_number("a few") is None


@pytest.mark.parametrize(
    "said",
    [
        "B",
        "B. the moon",
        "(B)",
        "The right choice is B.",
        "The answer is **B**, as A is a door and C a spoon.",
        "It is the moon.",
        r"\boxed{B}",
        "A is wrong. The answer is b.",
        "Option A is wrong, option C too.\n**Answer: B. the moon**",
        "The answer is a matter of light: the moon.",
    ],
)
def test_a_letter_is_found_however_it_is_named(said):
    assert extract(CHOICE, said) == "B"


@pytest.mark.parametrize("said", ["", "A moonless night is hard to choose.", "B or C", "All of them"])
def test_a_text_that_settles_on_no_choice_is_unextractable(said):
    assert extract(CHOICE, said) is None


@pytest.mark.parametrize(
    ("said", "right"),
    [
        *(("no", True), ("The answer is **No**.", True), ("Yes? I thought so first.\nNo.", True)),
        *(("I do not know", False), ("There is no doubt: yes", False), ("Answer: yes, no", False), ("", False)),
    ],
)
def test_a_text_is_right_where_it_is_the_answer_and_not_where_it_mentions_it(said, right):
    item = Item(question="Is it?", answer="no")
    assert is_right(item, extract(item, said)) == right


def test_a_prompt_lists_its_choices_and_says_how_to_answer():
    assert CHOICE.prompt == (
        "Which?\nA. a red door\nB. the moon\nC. a spoon\nD. nothing\nAnswer with the letter of the right choice."
    )
    assert NUMBER.prompt.endswith("as your final answer.")
    asked = Item(question="How many? Give it as your final answer.", answer="3")
    assert asked.prompt == asked.question, "a source that asks for the result is not asked twice"


def test_items_made_from_a_seed_are_the_same_for_the_seed_alone():
    pytest.importorskip("reasoning_gym")
    first, again = (load_task("gsm_symbolic", limit=5, seed=3) for _ in range(2))
    other = load_task("gsm_symbolic", limit=5, seed=4)
    assert first == again
    assert first.sha256 == again.sha256 != other.sha256
    for item in first.items:
        assert is_right(item, extract(item, item.worked)), "the worked answer states the answer"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_names_a_choice_by_its_letter_its_number_or_its_text(tmp_path):
    choices = {"A": "red", "B": "blue"}
    numbered = {"1": "red", "2": "blue"}
    rows = [
        {"question": "q1", "answer": "B", "choices": choices},
        {"question": "q2", "answer": "2", "choices": numbered},
        {"question": "q3", "answer": "blue", "choices": ["red", "blue"]},
    ]
    items = load_task(write(tmp_path / "file.jsonl", *rows), limit=9).items
    assert [item.answer for item in items] == ["B", "B", "B"]
    assert items[1].choices == ("red", "blue")


def test_a_limited_draw_is_fixed_by_the_seed_and_keeps_the_order(tmp_path):
    file = write(tmp_path / "f.jsonl", *({"question": str(n), "answer": str(n)} for n in range(50)))
    drawn = [int(item.question) for item in load_task(file, limit=10, seed=1).items]
    assert drawn == sorted(drawn)
    assert drawn == [int(item.question) for item in load_task(file, limit=10, seed=1).items]
    assert drawn != [int(item.question) for item in load_task(file, limit=10, seed=2).items]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "q"}], "'question' and 'answer'"),
        ([{"question": "q", "answer": "C", "choices": ["a", "b"]}], "none of the choices A, B"),
        ([{"question": "q", "answer": "1"}], "needs 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path, rows, words):
    with pytest.raises(BenchmarkError, match=words):
        load_task(write(tmp_path / "f.jsonl", *rows), limit=9)


def test_an_unknown_task_names_what_there_is():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(BenchmarkError, match="gsm_symbolic"):
        load_task("gsm_symbolik", limit=3)
