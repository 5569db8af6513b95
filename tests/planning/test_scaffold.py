"""``svf init``: what it writes is a configuration, a style and questions that work as they are."""

import re

import pytest
import yaml

from factory.config import Settings, load_configuration
from factory.errors import ConfigError
from factory.pairs.dataset import load_questions
from factory.pairs.styles import load_style
from factory.planning.scaffold import Scaffold, describe_settings

ABOUT = "Talks like a pirate: says 'arr', and never #tires of the \"sea\""


def test_what_init_writes_is_a_configuration_a_style_and_questions(tmp_path):
    scaffold = Scaffold(tmp_path / "my", "pirate", ABOUT)
    scaffold.write()
    config, _, questions = scaffold.paths
    settings = load_configuration(config, environment={}).settings
    assert settings.styles == ["pirate"]
    style = load_style("pirate", tmp_path / "my" / settings.styles_dir)
    assert ABOUT in style.description
    assert ABOUT in style.instruction()
    assert all(ABOUT in prompt for prompt in style.positive_prompt)
    assert len(load_questions(questions)) >= 16


def test_every_setting_stands_in_the_configuration_with_its_default():
    text = describe_settings({})
    shown = re.sub(r"^# (?=[ a-z_]+:)", "", text, flags=re.MULTILINE)
    assert Settings.model_validate(yaml.safe_load(shown)) == Settings()
    assert yaml.safe_load(text) is None, "nothing is set that nobody chose"


def test_files_that_exist_are_left_as_they_are(tmp_path):
    (tmp_path / "questions.txt").write_text("mine?\n")
    with pytest.raises(ConfigError, match=r"questions\.txt exists already"):
        Scaffold(tmp_path, "pirate", ABOUT).write()
    assert (tmp_path / "questions.txt").read_text() == "mine?\n"
    assert not (tmp_path / "config.yaml").exists(), "all or nothing"


def test_a_style_that_cannot_be_a_file_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not allowed"):
        Scaffold(tmp_path, "../up", ABOUT).write()


def test_of_two_that_begin_in_one_folder_at_once_one_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Scaffold, "require_free", lambda self: None)  # both have looked, and neither has written
    Scaffold(tmp_path, "pirate", ABOUT).write()
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"config\.yaml exists already"):
        Scaffold(tmp_path, "poet", "Rhymes").write()
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before
