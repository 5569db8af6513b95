"""What is held out: no question that a pair asks measures the vector that is made of the pairs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import ConfigError
from factory.files import shipped_file
from factory.pairs.dataset import load_questions
from factory.pairs.heldout import QUESTION_HASHES, find_asked, find_hashed, hash_questions
from factory.pairs.repeats import SAME_QUESTION, are_alike, words_of
from factory.planning.estimate import estimate_run
from factory.planning.plan import plan_run
from tests.evaluated import make_run

STYLE = "step_by_step_reasoning"
NEW = ["Why do cats purr?", "How do locks work?", "What makes bread rise?", "Who names the winds?"]
few_words = st.lists(st.sampled_from(["the", "sea", "moon", "why", "7"]), min_size=1, max_size=5).map(" ".join)


def asking(folder, held_out, **given):
    """Settings of a run whose pairs are the shipped ones, and which is measured on ``held_out``."""
    file = folder / "heldout.txt"
    file.write_text("\n".join(held_out) + "\n")
    return Settings(styles=[STYLE], evaluation={"questions_file": str(file), **given})


def pair_questions(starter_pairs, count):
    return [pair.question for pair in starter_pairs if pair.style == STYLE][:count]


@given(st.lists(few_words, max_size=6, unique=True), st.lists(few_words, max_size=8))
def test_what_is_asked_is_found_as_by_comparing_all_with_all(held_out, asked):
    def same(one, other):
        words = [words_of(text, numbers_tell=True) for text in (one, other)]
        return are_alike(*words, SAME_QUESTION)

    naive = {mine: [theirs for theirs in asked if same(mine, theirs)] for mine in held_out}
    assert find_asked(held_out, asked) == {mine: theirs[0] for mine, theirs in naive.items() if theirs}


def test_hashes_find_a_question_in_other_case_and_punctuation_and_no_other_question():
    hashes = hash_questions(["Why is the sky blue?", "Why is the sky blue?"])
    assert len(hashes) == 1
    assert find_hashed(["why is sky BLUE", "Why is the sea blue?"], hashes) == ["why is sky BLUE"]


def test_held_out_questions_that_pairs_ask_are_left_out_of_a_plan_and_counted(store, tmp_path, starter_pairs):
    exactly, nearly = pair_questions(starter_pairs, 2)
    settings = asking(tmp_path, [exactly, *NEW, nearly.rstrip("?").upper()])
    plan = plan_run(settings, store, tmp_path)
    assert sorted((*plan.spec.evaluation.questions, *plan.spec.evaluation.choice_questions)) == sorted(NEW)
    (warning,) = plan.warnings
    assert "left out of the evaluation, 2 here" in warning
    assert exactly in warning
    assert estimate_run(settings, store, tmp_path).notes == [*plan.notes, warning]


def test_questions_that_are_still_to_be_answered_are_not_held_out_either(store, tmp_path):
    settings = asking(tmp_path, NEW).model_copy(
        update={"extend": True, "additional_questions": NEW[:1], "base_url": "http://127.0.0.1:1/v1"}
    )
    (warning,) = (line for line in plan_run(settings, store, tmp_path).warnings if "held-out" in line)
    assert f"1 here: {NEW[0]!r}" in warning


def test_an_evaluation_on_questions_that_pairs_ask_is_refused(store, tmp_path, starter_pairs):
    settings = asking(tmp_path, [*pair_questions(starter_pairs, 20), *NEW[:2]])
    with pytest.raises(ConfigError, match=r"holds 2 questions that no pair asks \(20 are asked by pairs\)"):
        plan_run(settings, store, tmp_path)


def test_without_an_evaluation_no_held_out_question_matters(store, tmp_path, starter_pairs):
    settings = asking(tmp_path, pair_questions(starter_pairs, 20))
    without = settings.model_copy(
        update={"output_config": settings.output_config.model_copy(update={"generate_analysis_reports": False})}
    )
    assert plan_run(without, store, tmp_path).warnings == []


def test_the_shipped_held_out_questions_are_all_used(store, tmp_path):
    assert plan_run(Settings(), store, tmp_path).warnings == []


def test_a_vector_knows_what_its_pairs_ask_so_that_it_is_not_evaluated_on_it(target_folder, tmp_path, store, svf):
    from factory.vector.vector import SteeringVector

    ledger, _ = make_run(target_folder, tmp_path, store, [STYLE])
    vector = SteeringVector.from_bytes(store.read(ledger.of(STYLE).vector_key), "v.pt")
    pairs = [json.loads(line) for line in store.read(ledger.of(STYLE).dataset_key).decode().splitlines()[1:]]
    assert vector.metadata[QUESTION_HASHES] == hash_questions(pair["question"] for pair in pairs)
    vector.save(tmp_path / "v.pt")
    (tmp_path / "asked.txt").write_text("\n".join([*(pair["question"] for pair in pairs), *NEW[:2]]))
    config = {"device": "cpu", "load_in_8bit": False, "evaluation": {"questions_file": "asked.txt"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    said = svf("evaluate", "v.pt")
    assert said.status == 2
    assert "left out 6 of 8 held-out questions" in said.err
    assert "2 questions that no pair asks" in said.err
    del vector.metadata[QUESTION_HASHES]
    vector.save(tmp_path / "v.pt")
    shipped = {"questions_file": str(shipped_file("questions", "heldout.txt"))}
    small = {"limit": 2, "choice_limit": 1, "cells": 1, "max_new_tokens": 8, "positions": [1], "strengths": [1]}
    (tmp_path / "config.yaml").write_text(json.dumps(config | {"evaluation": shipped | small}))
    said = svf("evaluate", "v.pt")
    assert said.status in (0, 1)
    assert "cannot be known" in said.err


def test_the_shipped_question_files_have_no_question_in_common():
    held_out, asked = (load_questions(shipped_file("questions", f"{name}.txt")) for name in ("heldout", "default"))
    assert find_asked(held_out, asked) == {}
