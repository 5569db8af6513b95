"""The terminal: what a person gets for each mistake, and what a program may read."""

import json
from dataclasses import dataclass

import pytest
import torch

from factory import cli
from factory.vector.vector import SteeringVector
from tests.conftest import STYLES

STYLE = "step_by_step_reasoning"


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def save_vector(folder, target, name="v.pt", **changes):
    shape = (target.n_layers, *target.shape)
    generator = torch.Generator().manual_seed(1)
    given = {"style_name": "calm", "layer_indices": list(range(target.n_layers)), "model_name": target.name} | changes
    vector = SteeringVector(
        key_vector=torch.randn(shape, generator=generator),
        value_vector=torch.randn(shape, generator=generator),
        **given,
    )
    vector.save(folder / name)
    return vector


@dataclass(frozen=True)
class Mistake:
    """Files that lie there, the words typed, and what the message must say."""

    words: str
    says: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()


MISTAKES = {
    "unknown key": Mistake(
        "generate --config c.yaml",
        ("c.yaml", "techer_model", "Did you mean 'teacher_model'?"),
        (("c.yaml", "techer_model: x"),),
    ),
    "wrong type": Mistake(
        "generate --config c.yaml", ("c.yaml", "api_delay", "'fast'"), (("c.yaml", "api_delay: fast"),)
    ),
    "missing configuration": Mistake("generate --config nowhere.yaml", ("nowhere.yaml", "does not exist")),
    "missing question file": Mistake("generate --questions nowhere.txt", ("nowhere.txt", "does not exist")),
    "empty question list": Mistake(
        "generate --questions q.txt", ("q.txt", "holds no question"), (("q.txt", "# nothing\n"),)
    ),
    "unknown style": Mistake(
        "generate --styles reseacher_style", ("'reseacher_style'", "Did you mean 'researcher_style'?")
    ),
    "style name with a path separator": Mistake("generate --styles ../evil", ("'../evil'", "not allowed")),
    "line that is not JSON": Mistake(
        f"generate --styles {STYLE}",
        (f"{STYLE}_pairs.jsonl, line 2", "not JSON"),
        ((f"datasets/{STYLE}_pairs.jsonl", '{"type": "metadata"}\n{oops\n'),),
    ),
    "line that lacks a field": Mistake(
        f"generate --styles {STYLE}",
        (f"{STYLE}_pairs.jsonl, line 1", "'positive_prompt' is missing"),
        ((f"datasets/{STYLE}_pairs.jsonl", '{"question": "Why?"}\n'),),
    ),
    "layers that the model does not have": Mistake(
        "generate --config c.yaml",
        ("[4, 5]", "layers 0 to 3"),
        (("c.yaml", "target_model: MODEL\nextraction_config: {target_layers: 2-5}"),),
    ),
    "unknown recipe": Mistake(
        "generate --config c.yaml", ("recipe", "'fewshots'"), (("c.yaml", "extraction_config: {recipe: fewshots}"),)
    ),
    "style without dataset and key": Mistake(
        "generate --config c.yaml",
        ("OPENAI_API_KEY", "pirate_pairs.jsonl"),
        (
            ("c.yaml", "styles: [pirate]\nstyles_dir: styles"),
            (
                "styles/pirate.yaml",
                "description: d\npositive_prompt: 'x {question}'\nnegative_prompt: 'y {question}'",
            ),
        ),
    ),
    "limit below one": Mistake("generate --limit 0", ("--limit",)),
    "unknown flag": Mistake("generate --colour red", ("--colour",)),
    "unknown command": Mistake("generat", ("generat",)),
    "batch file without styles": Mistake("enqueue --batch b.yaml", ("b.yaml", "'styles'"), (("b.yaml", "x: 1"),)),
    "missing batch file": Mistake("enqueue --batch nowhere.yaml", ("nowhere.yaml",)),
    "unknown run": Mistake("status 20260101-000000-abcd", ("neither run '20260101-000000-abcd'", "--output")),
    "no run at all": Mistake("watch", ("there is no run in store", "--output")),
    "missing vector": Mistake("show nowhere.pt", ("nowhere.pt", "No such file")),
    "a file that is no vector": Mistake("show v.pt", ("v.pt", "not a steering vector"), (("v.pt", "hello"),)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_two_lines_status_2_and_leaves_nothing_behind(here, said, target_folder, name):
    mistake = MISTAKES[name]
    for file, text in mistake.files:
        write(here, file, text.replace("MODEL", str(target_folder)))
    before = all_files(here)
    ended = said(*mistake.words.split())
    assert ended.status == 2, ended
    for words in mistake.says:
        assert words in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert 1 <= len(ended.err.strip().splitlines()) <= 2
    assert ended.out == ""
    assert all_files(here) == before


def test_a_vector_of_another_model_is_refused_by_name(here, said, target, target_folder, qwen_folder):
    save_vector(here, target, layer_indices=[0, 1, 2, 9])
    ended = said("steer", "v.pt", "-p", "Why?")
    assert ended.status == 2, ended
    assert "'calm'" in ended.err
    assert str(target_folder) in ended.err
    save_vector(here, target, model_name=str(qwen_folder))
    ended = said("steer", "v.pt", "-p", "Why?")
    assert ended.status == 2, ended
    assert str(qwen_folder) in ended.err


def test_debug_shows_the_traceback_wherever_it_stands(svf):
    for words in (("--debug", "show", "nowhere.pt"), ("show", "nowhere.pt", "--debug")):
        ended = svf(*words)
        assert ended.status == 1
        assert "Traceback" in ended.err
        assert "VectorError" in ended.err


def test_without_a_broker_enqueue_ends_with_3_and_a_remedy(svf):
    ended = svf("enqueue", FACTORY_BROKER_URL="redis://:secret-word@127.0.0.1:9/0")
    assert ended.status == 3, ended
    assert "no broker at redis://" in ended.err
    assert "secret-word" not in ended.err + ended.out
    assert "svf generate" in ended.err
    assert len(ended.err.strip().splitlines()) <= 2


def test_what_nobody_foresaw_is_one_line_as_well(here, said, monkeypatch):
    monkeypatch.setattr("factory.commands.styles.list_styles", lambda _: 1 / 0)
    ended = said("styles")
    assert ended.status == 1
    assert "unexpected ZeroDivisionError" in ended.err
    assert "Traceback" not in ended.err


def test_without_words_the_help_is_shown(said):
    ended = said()
    assert ended.status == 2
    assert "Usage:" in ended.out
    assert ended.err == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(said, command):
    ended = said(command, "--help")
    assert ended.status == 0, ended
    assert "Usage:" in ended.out
    assert len(ended.out.splitlines()) > 4


def test_brackets_in_a_message_survive(said):
    ended = said("generate", "--styles", "[bold]x[/bold]")
    assert "[bold]x[/bold]" in ended.err


@pytest.mark.parametrize(
    "words",
    [
        "--styles researcher_style creative_explorer",
        "--styles researcher_style creative_explorer --limit 2",
        "--styles researcher_style, creative_explorer",
        "-s researcher_style -s creative_explorer",
        "researcher_style creative_explorer researcher_style",
    ],
)
def test_styles_may_be_named_in_every_form_that_people_type(said, words):
    ended = said("estimate", "--json", *words.split())
    assert ended.status == 0, ended
    assert [part["style"] for part in json.loads(ended.out)["styles"]] == ["researcher_style", "creative_explorer"]


def test_styles_lists_all_with_their_pairs(said):
    rows = json.loads(said("styles", "--json").out)
    assert [(row["name"], row["pairs"]) for row in rows] == [(name, 48) for name in STYLES]
    table = said("styles").out
    for name in STYLES:
        assert name in table


def test_an_own_style_is_listed_without_code(here, said):
    write(here, "styles/pirate.yaml", "description: Arr.\npositive_prompt: '{question}'\nnegative_prompt: '{question}'")
    write(here, "config.yaml", "styles_dir: styles")
    rows = json.loads(said("styles", "--json").out)
    assert {row["name"]: row["pairs"] for row in rows}["pirate"] == 0


def test_config_says_where_each_value_came_from_and_hides_passwords(here, said, monkeypatch):
    write(here, "config.yaml", "device: cpu\nbroker_url: redis://:secret-word@host:6379/0")
    monkeypatch.setenv("FACTORY_TARGET_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-word")
    rows = json.loads(said("config", "--json").out)
    assert rows["device"] == {"value": "cpu", "origin": "config.yaml"}
    assert rows["target_model"] == {"value": "m", "origin": "variable FACTORY_TARGET_MODEL"}
    assert rows["teacher_model"]["origin"] == "default"
    assert "secret-word" not in json.dumps(rows)
    assert "secret-word" not in said("config").out


def test_show_describes_vectors_and_compares_them(here, said, target):
    vector = save_vector(here, target, "a.pt")
    save_vector(here, target, "b.safetensors", style_name="bold")
    shown = json.loads(said("show", "a.pt", "b.safetensors", "--json").out)
    first = shown["vectors"][0]
    assert first["shape"] == list(vector.value_vector.shape)
    assert first["norms"]["values"] == pytest.approx(vector.norms()["values"])
    assert shown["cosines"] == {"calm ~ bold": pytest.approx(1.0)}
    text = said("show", "a.pt", "b.safetensors").out
    assert "cosine calm ~ bold: +1.000" in text
    assert "0-3" in text


def test_steer_shows_both_answers_and_strength_0_changes_nothing(here, said, target):
    save_vector(here, target)
    lines = said("steer", "v.pt", "-p", "Why?", "--strength", 0, "--strength", 40, "--max-new-tokens", 8, "--json").out
    answers = json.loads(lines.splitlines()[0])["answers"]
    assert {"unsteered", "strength 0", "strength 40"} <= set(answers)
    assert answers["strength 0"] == answers["unsteered"]
    assert answers["strength 40"] != answers["unsteered"]


def test_download_names_the_folder_of_a_model_that_is_here(said, target_folder):
    ended = said("download", target_folder)
    assert ended.status == 0, ended
    assert ended.out.strip() == str(target_folder)
