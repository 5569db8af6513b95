"""``svf init``: a style from one line, by the teacher or as a template."""

import pytest

from factory.config import load_configuration
from factory.pairs.dataset import load_questions
from factory.pairs.styles import load_style
from tests.endpoint import DRAFT, draft_and_answers, running_endpoint

LINE = ("init", "mine", "--style", "steps", "--description", "Numbered steps, one per line")


@pytest.fixture
def teacher(monkeypatch):
    with running_endpoint() as server:
        server.answer = draft_and_answers
        monkeypatch.setenv("FACTORY_BASE_URL", server.base_url)
        yield server


def test_with_a_teacher_one_line_becomes_a_style_that_is_recognised(here, said, teacher, monkeypatch):
    ended = said(*LINE)
    assert ended.status == 0, ended
    assert "asking gpt-4 at 127.0.0.1 for the style\n" in ended.out
    assert "gpt-4 wrote it: 160 tokens\n" in ended.out
    monkeypatch.delenv("FACTORY_BASE_URL")
    settings = load_configuration("mine/config.yaml").settings
    assert settings.base_url == teacher.base_url, "the folder knows its teacher from now on"
    style = load_style("steps", here / "mine" / settings.styles_dir)
    assert style.is_shown_in(DRAFT["example"])
    assert not style.is_shown_in(DRAFT["plain"])
    assert DRAFT["instruction"] in style.instruction()
    questions = load_questions("mine/questions.txt")
    assert questions[: len(DRAFT["questions"])] == DRAFT["questions"]
    assert len(questions) == 24


def test_from_nothing_to_pairs_of_an_own_style_by_the_same_teacher(here, said, teacher, monkeypatch):
    said(*LINE)
    monkeypatch.chdir("mine")
    planned = said("estimate")
    assert planned.status == 0, planned
    assert "steps" in planned.out
    assert " 24 " in planned.out


def test_the_most_that_it_costs_and_what_it_did_cost_are_said(here, said, teacher, monkeypatch):
    monkeypatch.setenv("FACTORY_PRICING", "{input: 10, output: 100}")
    ended = said(*LINE)
    assert "(costs $0.4" in ended.out, ended
    assert "160 tokens, $0.0070" in ended.out
    monkeypatch.setenv("FACTORY_MAX_COST_USD", "0.1")
    refused = said("init", "other", *LINE[2:])
    assert refused.status == 2
    assert "max_cost_usd is $0.1" in refused.err
    assert teacher.statuses.total() == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": lambda prompt: "no"}, "not the JSON object"),
        ({"status": 401, "code": "invalid_api_key"}, "key"),
    ],
)
def test_a_teacher_that_does_not_write_it_is_a_sentence_with_a_way_out(here, said, teacher, change, says):
    for name, value in change.items():
        setattr(teacher, name, value)
    ended = said(*LINE)
    assert ended.status == 1, ended
    assert says in ended.err
    assert "No file was written" in ended.err
    assert not (here / "mine" / "config.yaml").exists()
    assert said(*LINE, "--template").status == 0


def test_without_a_description_a_key_or_by_wish_it_is_a_template(here, said, teacher, monkeypatch):
    assert said("init", "one").status == 0
    assert said(*LINE, "--template").status == 0
    monkeypatch.delenv("FACTORY_BASE_URL")
    ended = said("init", "three", "--description", "Rhymes")
    assert ended.status == 0
    assert "export OPENAI_API_KEY=" in ended.out
    assert not teacher.statuses


def test_what_exists_is_found_before_the_teacher_is_asked(here, said, teacher):
    assert said(*LINE).status == 0
    ended = said(*LINE)
    assert ended.status == 2
    assert "stay as they are" in ended.err
    assert teacher.statuses.total() == 1
