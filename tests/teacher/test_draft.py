"""A style that the teacher drafts from one line: what is taken from its reply, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import BadReply, TeacherBusy
from factory.pairs.styles import find_markers
from factory.planning.scaffold import describe_style
from factory.teacher.draft import as_pattern, ask_for_draft, read_draft
from tests.endpoint import DRAFT
from tests.scripted import Scripted, said, teacher_at


def test_a_draft_becomes_an_instruction_patterns_and_questions():
    draft = read_draft(f"Sure!\n```json\n{json.dumps(DRAFT, indent=1)}\n```")
    assert draft.instruction == DRAFT["instruction"]
    assert draft.markers == (r"^\W*Step\s+\d+\b", r"\bfirst\s+of\s+all\b")
    assert draft.min_markers == 2
    assert list(draft.questions) == DRAFT["questions"]


@pytest.mark.parametrize(
    ("phrase", "text", "n"),
    [
        ("^Step #", "**Step 1**: a\nstep 22 b, Step 3", 2),
        ("arr", "Arr, harr, arr!", 2),
        ("first of all", "First of\nall", 1),
        ("(maybe)", "well (maybe) not", 1),
        ("#.", "1. one\n2. two", 2),
        ("why?", "Why? Whyever", 1),
    ],
)
def test_a_phrase_is_found_as_a_person_means_it(phrase, text, n):
    assert len(list(find_markers([as_pattern(phrase)], text))) == n


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction": " "}, "no instruction"),
        ({"questions": ["Why?", "# How?"]}, "1 questions"),
        ({"questions": "Why?"}, "0 questions"),
        ({"markers": ["open"]}, "do not tell"),
        ({"markers": ["^", "", 3]}, "do not tell"),
        ({"example": "Nothing of it."}, "do not tell"),
    ],
)
def test_a_draft_that_would_not_do_is_refused_by_reason(change, says):
    with pytest.raises(BadReply, match=says):
        read_draft(json.dumps(DRAFT | change))


def test_a_marker_that_the_plain_answer_shows_is_left_out():
    draft = read_draft(json.dumps(DRAFT | {"markers": ["look inside", "^Step #"]}))
    assert draft.markers == (r"^\W*Step\s+\d+\b",)


texts = st.text(st.characters(codec=None), max_size=60)


@given(
    st.fixed_dictionaries(
        {
            "instruction": texts,
            "markers": st.lists(texts, max_size=4),
            "openings": st.lists(texts, max_size=3),
            "questions": st.lists(texts, min_size=4, max_size=6),
            "example": texts,
            "plain": texts,
        }
    )
)
def test_whatever_a_teacher_says_is_a_style_that_can_be_read_or_is_refused(content):
    example = " ".join([content["example"], *content["markers"]])
    try:
        draft = read_draft(json.dumps(content | {"example": example}))
    except BadReply:
        return
    describe_style("odd", "Odd", draft)  # reads what it wrote
    assert all("\n" not in question and not question.startswith("#") for question in draft.questions)


def test_a_second_draft_is_asked_for_where_the_first_cannot_be_used(store):
    server = Scripted(said("I would rather not."), said(json.dumps(DRAFT)))
    draft, replies = ask_for_draft(teacher_at(server, store), "Steps")
    assert draft.instruction == DRAFT["instruction"]
    assert [reply.text for reply in replies] == ["I would rather not.", json.dumps(DRAFT)]
    assert server.bodies[0]["seed"] != server.bodies[1]["seed"]
    again, _ = ask_for_draft(teacher_at(server, store), "Steps")
    assert again == draft
    assert len(server.bodies) == 2, "what was paid for is not asked again"


def test_a_busy_teacher_is_asked_again_and_not_for_ever(store):
    import httpx2

    waited = []
    server = Scripted(httpx2.Response(503, json={}))
    with pytest.raises(TeacherBusy):
        ask_for_draft(teacher_at(server, store), "Steps", wait=waited.append)
    assert len(waited) == 2
    assert len(server.bodies) == 3
