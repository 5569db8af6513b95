"""Near-repeats: questions that ask the same again, and answers that say the same again."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import StoreError
from factory.pairs.dataset import load_dataset
from factory.pairs.pair import ContrastivePair
from factory.pairs.repeats import SAME_ANSWER, SAME_QUESTION, SHELF, are_alike, find_repeats, words_of
from factory.pipeline import build_vector
from factory.planning.plan import plan_run
from factory.planning.supply import find_supply, request_style
from factory.run.artifacts import put_pairs
from factory.run.entries import Written
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.steps.extract import extract_step
from factory.steps.reduce import reduce_step
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.conftest import MEANS

few_words = st.lists(st.sampled_from(["the", "sky", "is", "blue", "why", "sea", "7", "8"]), max_size=8).map(" ".join)


SENTENCES = [" ".join(random.Random(n).choices([f"w{m}" for m in range(50)], k=25)) for n in range(4)]
numbers = st.integers(0, 24)


@st.composite
def altered(draw):
    """A text of 25 words with a few of them other ones, so that it is nearly alike to some."""
    words = draw(st.sampled_from(SENTENCES)).split()
    for place in draw(st.lists(numbers, max_size=4)):
        words[place] = f"w{draw(numbers)}"
    return " ".join(words)


def compared_with_all(texts, alike, *, numbers_tell):
    repeats: dict[int, int] = {}
    known = [words_of(text, numbers_tell=numbers_tell) for text in texts]
    for number in range(len(texts)):
        kept = [earlier for earlier in range(number) if earlier not in repeats]
        twin = next((earlier for earlier in kept if are_alike(known[number], known[earlier], alike)), None)
        if twin is not None:
            repeats[number] = twin
    return repeats


@given(
    st.lists(few_words, max_size=20) | st.lists(altered(), max_size=20),
    st.sampled_from([0.3, SAME_ANSWER, SAME_QUESTION, 1.0]),
    st.booleans(),
)
def test_the_repeats_are_those_that_comparing_all_with_all_finds(texts, alike, numbers_tell):
    naive = compared_with_all(texts, alike, numbers_tell=numbers_tell)
    assert find_repeats(texts, alike, numbers_tell=numbers_tell) == naive


def test_memory_is_the_same_for_ten_times_as_many_texts():
    """Python's own part of it; SQLite keeps to its cache."""
    few, many = (peak_memory(n) for n in (100, 1000))
    assert many < few + 16 * 900  # bytes; the word pairs alone are 480 a text


def peak_memory(n_texts):
    random_words = random.Random(1)
    texts = (" ".join(f"w{random_words.randrange(2000)}" for _ in range(120)) for _ in range(n_texts))
    tracemalloc.start()
    try:
        assert find_repeats(texts, SAME_ANSWER, numbers_tell=False) == {}
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr("factory.pairs.repeats.SHELF", SHELF.replace("BEGIN", "PRAGMA max_page_count = 20; BEGIN"))
    with pytest.raises(StoreError, match=r"database or disk is full; .* set SQLITE_TMPDIR to a folder with room"):
        find_repeats(SENTENCES * 300, SAME_ANSWER, numbers_tell=False)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How do birds fly?", "how do the birds  fly", True),
        ("Why is a café noisy?", "Why is the cafe noisy", True),
        ("How do birds fly?", "How do bats fly?", False),
        ("What is 12 times 7?", "What is 12 times 8?", False),
        ("What causes the seasons on Earth?", "What causes the tides on Earth?", False),
        ("Why?", "why", True),
        ("?", "!", False),
    ],
)
def test_questions_are_one_only_if_they_ask_the_same(one, other, same):
    assert bool(find_repeats([one, other], SAME_QUESTION, numbers_tell=True)) is same


@given(st.lists(few_words, max_size=12), few_words)
def test_a_further_text_changes_nothing_about_those_before(texts, further):
    before = find_repeats(texts, SAME_QUESTION, numbers_tell=True)
    after = find_repeats([*texts, further], SAME_QUESTION, numbers_tell=True)
    assert {number: twin for number, twin in after.items() if number < len(texts)} == before


def test_many_questions_from_one_template_are_compared_with_few_others(monkeypatch):
    compared = []
    monkeypatch.setattr("factory.pairs.repeats.are_alike", lambda *words: compared.append(1) or are_alike(*words))
    questions = [f"In the long history of the world, what is the capital of land{n} and why?" for n in range(2000)]
    assert find_repeats(questions, SAME_QUESTION, numbers_tell=False) == {}
    assert len(compared) < 64 * len(questions)  # all with all would be 1000 times as many


# ---- at planning

LOCAL = {
    "styles": ["step_by_step_reasoning"],
    "base_url": "http://127.0.0.1:1/v1",
    "regenerate_datasets": True,
    **MEANS,  # two pairs are too few to learn from, which planning would say
}


def asked(plan):
    return [question for batch in plan.batches["step_by_step_reasoning"] for question in batch.questions]


def test_a_question_that_repeats_another_is_not_asked_and_said_once(store, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("How do birds fly?\nWhy is ice slippery?\nHow do the birds fly\nhow do birds fly\n")
    settings = Settings(**LOCAL, custom_questions_file=str(file))
    plan = plan_run(settings, store, tmp_path)
    assert asked(plan) == ["How do birds fly?", "Why is ice slippery?"]
    assert plan.warnings == [
        "questions that nearly repeat others are not asked, 2 here: "
        "'How do the birds fly' after 'How do birds fly?', ..."
    ]
    assert find_supply(settings, request_style(settings, "step_by_step_reasoning", None), tmp_path).missing == asked(
        plan
    )


def test_a_bound_on_pairs_counts_only_questions_that_are_asked(store, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("How do birds fly?\nhow do birds fly\nWhy is ice slippery?\n")
    plan = plan_run(Settings(**LOCAL, custom_questions_file=str(file)), store, tmp_path, limit=2)
    assert asked(plan) == ["How do birds fly?", "Why is ice slippery?"]


def test_extending_does_not_ask_what_nearly_has_its_pair(store, tmp_path):
    settings = Settings(
        **LOCAL | {"regenerate_datasets": False, "extend": True},
        additional_questions=["How does PHOTOSYNTHESIS work", "Why do cats purr?"],
    )
    plan = plan_run(settings, store, tmp_path)
    assert "Why do cats purr?" in asked(plan)
    assert "How does PHOTOSYNTHESIS work" not in asked(plan)
    assert any("PHOTOSYNTHESIS" in warning for warning in plan.warnings)


# ---- in a run

WORDS = [f"word{n}" for n in range(60)]


def answer(seed, *, changed=0):
    """Forty words of their own, of which the last ``changed`` are others."""
    words = random.Random(seed).choices(WORDS, k=40)
    return " ".join([*words[: 40 - changed], *("other" for _ in range(changed))])


def written_run(target_folder, folder, order):
    """A run of three batches, written in some order; pair 9 nearly repeats pair 1, of another batch."""
    settings = Settings(
        **LOCAL,
        target_model=str(target_folder),
        device="cpu",
        load_in_8bit=False,
        extraction_config={"target_layers": "all", "batch_size": 4},
        output_config={"generate_analysis_reports": False},
    )
    store = Store(str(folder / "store"))
    plan = plan_run(settings, store, folder, limit=12)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    for number in order:
        pairs = [
            ContrastivePair(
                question,
                answer(1, changed=2) if at == 9 else answer(at),
                answer(100 + at),
                LOCAL["styles"][0],
                batch=number,
            )
            for at, question in enumerate(ledger.of(LOCAL["styles"][0]).batches[number].questions, start=4 * number)
        ]
        key = put_pairs(store, pairs, [])
        ledger.of(LOCAL["styles"][0]).record("written", number, Written(key=key, n_pairs=len(pairs)))
        extract_step(ledger.of(LOCAL["styles"][0]), number, settings)
    reduce_step(ledger.of(LOCAL["styles"][0]))
    return ledger


def test_a_pair_that_repeats_one_of_another_batch_does_not_count_whoever_wrote_first(target_folder, target, tmp_path):
    style = LOCAL["styles"][0]
    runs = [written_run(target_folder, tmp_path / str(n), order) for n, order in enumerate([(0, 1, 2), (2, 1, 0)])]
    ledger, other = runs
    content = ledger.store.read(ledger.of(style).vector_key)
    assert content == other.store.read(other.of(style).vector_key)
    vector = SteeringVector.from_bytes(content, "x.pt")
    ids = [pair_id for batch in range(3) for pair_id in ids_of(ledger, style, batch)]
    assert vector.metadata["failures"] == [{"pair_id": ids[9], "reason": "duplicate"}]
    assert (vector.metadata["total_pairs"], vector.metadata["pairs_used"]) == (12, 11)
    assert (progress_of(ledger.of(style)).failed, progress_of(ledger.of(style)).reasons) == (1, {"duplicate": 1})
    manifest = ledger.store.read_json(ledger.of(style).manifest_key)
    assert (manifest["pairs"], manifest["rejected"]) == (11, {"duplicate": 1})
    assert ids[1].encode() in ledger.store.read(ledger.of(style).rejected_key)


def ids_of(ledger, style, number):
    from factory.run.artifacts import batch_of

    return [pair.pair_id for pair in batch_of(ledger.of(style), number)[0]]


def test_the_dataset_of_a_run_with_a_repeat_gives_the_same_vector_again(target_folder, target, tmp_path):
    style = LOCAL["styles"][0]
    ledger = written_run(target_folder, tmp_path / "run", (1, 0, 2))
    vector = SteeringVector.from_bytes(ledger.store.read(ledger.of(style).vector_key), "x.pt")
    file = tmp_path / "again" / "datasets" / f"{style}_pairs.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(ledger.store.read(ledger.of(style).dataset_key))
    again = build_vector(load_dataset(file)[1], target, style=style)
    assert torch.equal(again.value_vector, vector.value_vector)
    assert again.metadata["pairs_used"] == 11
