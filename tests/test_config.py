"""Settings: every key once, each value from where it should come, and mistakes named."""

import ast
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import factory.config
from factory.config import Settings, load_configuration, load_settings
from factory.errors import ConfigError
from tests.conftest import ROOT

SECTIONS = ("extraction_config", "output_config", "learning", "evaluation")


def config_file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def flat(settings):
    dotted = {}
    for key, value in settings.items():
        parts = value if key in SECTIONS else {None: value}
        dotted |= {key if inner is None else f"{key}.{inner}": setting for inner, setting in parts.items()}
    return dotted


ALL_KEYS = sorted(flat(Settings().model_dump()))


def test_the_shipped_file_says_every_key_and_its_default():
    written = flat(yaml.safe_load((ROOT / "config.yaml").read_text()))
    defaults = flat(Settings().model_dump(mode="json"))
    assert written == defaults


def test_every_key_of_the_shipped_file_is_explained_or_named_by_its_neighbour():
    lines = (ROOT / "config.yaml").read_text().splitlines()
    for key in ALL_KEYS:
        name = key.rpartition(".")[2]
        assert any(re.match(rf"\s*{name}:", line) for line in lines), key


def test_the_sections_are_known_wherever_their_keys_are_shown():
    assert factory.config.SECTIONS == SECTIONS


def test_every_field_is_described():
    for section in (Settings, *(type(Settings.model_fields[name].default) for name in SECTIONS)):
        for name, field in section.model_fields.items():
            assert field.description, name


def test_the_file_for_a_laptop_needs_no_hub_no_gpu_and_no_key():
    settings = load_settings(ROOT / "config_cpu.yaml")
    assert settings.target_model == "smollm2-135m-instruct"
    assert settings.device == "cpu"
    assert not settings.load_in_8bit
    assert settings.extraction_config.target_layers == "all"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("techer_model: x", "unknown key 'techer_model'. Did you mean 'teacher_model'?"),
        (
            "extraction_config: {target_layer: 3}",
            "unknown key 'extraction_config.target_layer'. Did you mean 'extraction_config.target_layers'?",
        ),
        ("zzzzzz: 1", "unknown key 'zzzzzz'. 'svf config' lists every key."),
        ("api_delay: fast", "key 'api_delay'"),
        ("max_failed_fraction: 2", "key 'max_failed_fraction'"),
        ("styles: researcher_style", "key 'styles'"),
        ("styles: []", "key 'styles'"),
        ("extraction_config: {batch_size: 0}", "key 'extraction_config.batch_size'"),
        ("extraction_config: 8", "key 'extraction_config'"),
        ("dtype: float16", "key 'dtype'"),
        ("api_delay: 1\nrequests_per_minute: 60", "set one of them"),
        ("- a\n- list", "should hold 'key: value' lines, found list"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named_in_one_line(tmp_path, text, complaint):
    path = config_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_configuration(path, environment={})
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_message_says_which_file_and_which_value(tmp_path):
    path = config_file(tmp_path, "api_delay: fast")
    with pytest.raises(ConfigError) as caught:
        load_configuration(path, environment={})
    assert str(path) in str(caught.value)
    assert "'fast'" in str(caught.value)


def test_a_mistake_in_a_variable_names_the_variable():
    with pytest.raises(ConfigError, match="variable FACTORY_API_DELAY: key 'api_delay'"):
        load_configuration(environment={"FACTORY_API_DELAY": "fast"})
    with pytest.raises(ConfigError, match="variable FACTORY_TECHER_MODEL: unknown key 'techer_model'"):
        load_configuration(environment={"FACTORY_TECHER_MODEL": "x"})


def test_a_variable_that_treats_a_value_as_a_section_is_refused():
    with pytest.raises(ConfigError, match="variable FACTORY_API_DELAY"):
        load_configuration(environment={"FACTORY_API_DELAY": "2", "FACTORY_API_DELAY__X": "1"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_configuration(tmp_path / "nowhere.yaml", environment={})


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path):
    path = config_file(
        tmp_path,
        "teacher_model: of-the-file\ntarget_model: of-the-file\ndevice: cpu\n"
        "extraction_config: {recipe: response_last}",
    )
    environment = {
        "FACTORY_TEACHER_MODEL": "of-the-variable",
        "FACTORY_TARGET_MODEL": "of-the-variable",
        "FACTORY_EXTRACTION_CONFIG__N_SHOTS": "2",
    }
    made = load_configuration(path, flags={"teacher_model": "of-the-flag"}, environment=environment)
    assert made.settings.teacher_model == "of-the-flag"
    assert made.settings.target_model == "of-the-variable"
    assert made.settings.device == "cpu"
    assert made.settings.extraction_config.recipe == "response_last"
    assert made.settings.extraction_config.n_shots == 2
    assert made.settings.extraction_config.batch_size == 16
    assert made.origin("teacher_model") == "flag --teacher-model"
    assert made.origin("target_model") == "variable FACTORY_TARGET_MODEL"
    assert made.origin("device") == str(path)
    assert made.origin("extraction_config.recipe") == str(path)
    assert made.origin("extraction_config.n_shots") == "variable FACTORY_EXTRACTION_CONFIG__N_SHOTS"
    assert made.origin("extraction_config.batch_size") == "default"


def test_the_file_is_named_by_a_variable_else_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_configuration(environment={}).file is None
    config_file(tmp_path, "device: cpu")
    assert load_configuration(environment={}).settings.device == "cpu"
    other = tmp_path / "other.yaml"
    other.write_text("device: cuda")
    assert load_configuration(environment={"FACTORY_CONFIG": str(other)}).settings.device == "cuda"


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load_configuration(config_file(tmp_path, ""), environment={}).settings == Settings()


def test_one_rate_by_two_names():
    assert Settings().calls_per_minute == 60
    assert Settings(requests_per_minute=500).calls_per_minute == 500
    assert Settings(api_delay=0.5).calls_per_minute == 120
    assert Settings(api_delay=None).calls_per_minute is None
    assert Settings(api_delay=0).calls_per_minute is None


def test_a_worker_may_load_its_own_target_model_unless_told_more():
    assert Settings(target_model="mine").models_allowed == ["mine"]
    assert Settings(allowed_models=["a", "b"]).models_allowed == ["a", "b"]


@given(st.sampled_from(ALL_KEYS))
def test_every_key_can_be_set_by_a_variable_with_its_own_default(key):
    value = flat(Settings().model_dump(mode="json"))[key]
    if key == "requests_per_minute":
        value = 30
    name = "FACTORY_" + key.upper().replace(".", "__")
    text = (
        value if isinstance(value, str) else "null" if value is None else yaml.safe_dump(value, default_flow_style=True)
    )
    made = load_configuration("/dev/null", environment={name: text})
    assert flat(made.settings.model_dump(mode="json"))[key] == value
    assert made.origin(key) == f"variable {name}"


@pytest.mark.parametrize("text", ["/srv/out #2/runs", "/data/a: b/runs", "007", "yes", "[red]", "{x}", " a ", "'q'"])
def test_a_variable_for_text_is_taken_as_it_stands(text):
    made = load_configuration("/dev/null", environment={"FACTORY_STORE": text, "FACTORY_TARGET_MODEL": text})
    assert (made.settings.store, made.settings.target_model) == (text, text)


@pytest.mark.parametrize("password", ["winter#snow", "winter/snow", "winter?snow", "#winter"])
def test_a_password_that_cuts_the_brokers_address_is_told_in_words_and_not_shown(password):
    with pytest.raises(ConfigError, match="%23") as caught:
        load_configuration("/dev/null", environment={"FACTORY_BROKER_URL": f"redis://:{password}@127.0.0.1:1/0"})
    assert "winter" not in str(caught.value)
    assert "snow" not in str(caught.value)


def test_a_broker_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="redis or rediss"):
        load_configuration("/dev/null", environment={"FACTORY_BROKER_URL": "amqp://guest:guest@127.0.0.1//"})


def test_no_default_of_a_setting_is_written_twice():
    """The literal defaults of names and models stand in config.py alone."""
    for default in ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "sam/assets/steering_vectors"):
        homes = [
            path.name
            for path in (ROOT / "factory").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value == default
        ]
        assert set(homes) <= {"config.py"}, (default, homes)
