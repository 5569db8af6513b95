"""Styles: the built-in ones are complete, a person's own need no code, and bad ones are named."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import ConfigError, UnknownStyle
from factory.pairs.styles import Style, check_style_name, list_styles, load_style, parse_style
from tests.conftest import STYLES

OWN = {
    "description": "Answers as a pirate.",
    "positive_prompt": "As a pirate: {question}",
    "negative_prompt": "Plainly: {question}",
}


def write_style(folder, file, /, **changes):
    content = {key: value for key, value in (OWN | changes).items() if value is not None}
    (folder / f"{file}.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_three_built_in_styles_are_there():
    assert tuple(list_styles()) == STYLES


@pytest.mark.parametrize("name", STYLES)
def test_a_built_in_style_says_everything_about_itself(name):
    style = load_style(name)
    for field in Style.model_fields:
        assert getattr(style, field), field
    assert len(style.positive_prompt) == len(style.negative_prompt)
    assert style.strength_modulation.model_dump() == {"low": 0.5, "medium": 1.0, "high": 1.5}


@pytest.mark.parametrize("name", STYLES)
def test_a_style_recognises_its_own_openings_and_not_plain_prose(name):
    style = load_style(name)
    prose = "Water boils at 100 degrees Celsius at sea level. It boils at a lower temperature on a mountain."
    assert not style.is_shown_in(prose)
    assert style.count_markers(prose) == 0


@pytest.mark.parametrize("heading", ["Step {}: look.", "## Step {}: look.", "### Step {}", "**Step {}:** look."])
def test_steps_are_counted_however_their_headings_are_marked(heading):
    style = load_style("step_by_step_reasoning")
    assert style.is_shown_in("\n".join(heading.format(n) for n in (1, 2)))


def test_a_yaml_file_in_a_folder_adds_a_style(tmp_path):
    styles = list_styles(write_style(tmp_path, "pirate"))
    assert set(styles) == {*STYLES, "pirate"}
    assert styles["pirate"].prompts_for("Why?") == ("As a pirate: Why?", "Plainly: Why?")


def test_an_own_style_wins_over_a_built_in_one_of_its_name(tmp_path):
    write_style(tmp_path, "researcher_style")
    assert load_style("researcher_style", tmp_path).description == "Answers as a pirate."


def test_an_unknown_style_names_the_nearest_and_all_others():
    with pytest.raises(UnknownStyle) as caught:
        load_style("reseacher_style")
    assert "Did you mean 'researcher_style'?" in str(caught.value)
    assert all(name in str(caught.value) for name in STYLES)


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "", ".hidden", "-flag", "a b", "x" * 65, "ü", "a\n"])
def test_a_name_that_is_no_file_name_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match="is not allowed"):
        check_style_name(name)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"description": None}, "key 'description'"),
        ({"positive_prompt": "no placeholder"}, "{question}"),
        ({"positive_prompt": []}, "key 'positive_prompt'"),
        ({"markers": ["(unclosed"]}, "not a regular expression"),
        ({"colour": "red"}, "key 'colour'"),
        ({"name": "a/b"}, "key 'name'"),
        ({"min_markers": 0}, "key 'min_markers'"),
        ({"strength_modulation": {"lowest": 1}}, "key 'strength_modulation.lowest'"),
    ],
)
def test_a_bad_style_file_is_named_with_its_key(tmp_path, changes, complaint):
    write_style(tmp_path, "pirate", **changes)
    with pytest.raises(ConfigError) as caught:
        list_styles(tmp_path)
    assert "pirate.yaml" in str(caught.value)
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["a: [", "just text", "- a\n- b", ""])
def test_a_file_that_is_no_mapping_is_refused(text):
    with pytest.raises(ConfigError, match="broken.yaml"):
        parse_style(text, "broken.yaml")


def test_a_missing_folder_of_styles_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        list_styles(tmp_path / "nowhere")


@given(st.text(min_size=1))
def test_the_prompts_of_a_question_hold_it_and_never_change(question):
    style = load_style("step_by_step_reasoning")
    positive, negative = style.prompts_for(question)
    assert question in positive
    assert question in negative
    assert style.prompts_for(question) == (positive, negative)


def test_every_paraphrase_is_used_by_some_question():
    style = load_style("step_by_step_reasoning")
    questions = [f"Question {number}?" for number in range(100)]
    asked = {style.prompts_for(question)[0].replace(question, "{question}") for question in questions}
    assert asked == set(style.positive_prompt)
