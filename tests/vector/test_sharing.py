"""What others read: the assets of an agent, and a shared folder with its card."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from factory.errors import VectorError
from factory.pairs.styles import load_style
from factory.run.export import renew_sam_assets, write_sam_assets
from factory.store import Store
from factory.vector.sharing import load_shared, share
from factory.vector.vector import SteeringVector
from tests.evaluated import finish_run, make_run
from tests.hub import running_hub

STYLE = "step_by_step_reasoning"
SEVEN = {
    "style_name": str,
    "description": str,
    "system_instruction": str,
    "reasoning_pattern": str,
    "strength_modulation": dict,
    "example_phrases": list,
    "cognitive_markers": list,
}


class PromptSteerer:
    """A reader of the assets folder as an agent has one: it knows the files alone, not the factory."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*_template.json"))
        self.templates = {file.stem.removesuffix("_template"): json.loads(file.read_text()) for file in files}
        self.vectors = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}

    def prompt(self, style: str, question: str, level: str) -> str:
        template = self.templates[style]
        strength = template["strength_modulation"][level]
        phrases = template["example_phrases"][: max(1, int(2 * strength))]
        return "\n".join([template["system_instruction"], template["reasoning_pattern"], *phrases, question])


@pytest.fixture(scope="module")
def vector(target_folder, tmp_path_factory) -> SteeringVector:
    """An evaluated vector of the tiny model."""
    folder = tmp_path_factory.mktemp("shared")
    ledger, settings = make_run(target_folder, folder, Store(str(folder / "runs")), [STYLE])
    finish_run(ledger, settings)
    return SteeringVector.from_bytes(ledger.store.read(ledger.of(STYLE).vector_key), "x.pt")


def test_an_agent_reads_all_seven_keys_with_their_types(vector, tmp_path):
    write_sam_assets(load_style(STYLE), vector, tmp_path)
    steerer = PromptSteerer(tmp_path)
    template = steerer.templates[STYLE]
    for key, kind in SEVEN.items():
        assert isinstance(template[key], kind), key
        assert template[key], key
    assert set(template["strength_modulation"]) == {"low", "medium", "high"}
    assert all(isinstance(phrase, str) for phrase in template["example_phrases"] + template["cognitive_markers"])
    assert "Why?" in steerer.prompt(STYLE, "Why?", "high")
    assert steerer.vectors[STYLE]["value_vector"].shape == vector.value_vector.shape


def test_the_effectiveness_in_a_template_is_the_measured_one(vector, tmp_path):
    write_sam_assets(load_style(STYLE), vector, tmp_path)
    known = PromptSteerer(tmp_path).templates[STYLE]["metadata"]
    measured = vector.metadata["evaluation"]["measured"]
    assert known["effectiveness_score"] == pytest.approx(
        measured["steered"]["share"] - measured["unsteered"]["share"], abs=1e-3
    )
    assert known["recommended_strength"] == vector.metadata["evaluation"]["setting"]["strength"]


def test_a_vector_that_was_not_evaluated_claims_no_effectiveness(vector, tmp_path):
    plain = vector * 1.0
    write_sam_assets(load_style(STYLE), plain, tmp_path)
    assert PromptSteerer(tmp_path).templates[STYLE]["metadata"]["effectiveness_score"] is None


def test_only_the_assets_of_the_same_vector_are_renewed(vector, tmp_path):
    style = load_style(STYLE)
    assert not renew_sam_assets(style, vector, vector, tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_sam_assets(style, replace(vector, value_vector=2 * vector.value_vector), tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert not renew_sam_assets(style, vector, vector, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    write_sam_assets(style, replace(vector, metadata={}), tmp_path)
    assert renew_sam_assets(style, vector, vector, tmp_path)
    assert PromptSteerer(tmp_path).templates[STYLE]["metadata"]["verdict"] == vector.metadata["verdict"]


def test_a_shared_folder_loads_as_the_same_vector(vector, tmp_path):
    path = share(vector, tmp_path)
    assert path.suffix == ".safetensors"
    for source in (tmp_path, str(tmp_path), path):
        loaded = load_shared(source)
        assert loaded == vector
        assert loaded.metadata == vector.metadata


def test_the_card_says_what_was_measured_and_where_it_came_from(vector, tmp_path):
    share(vector, tmp_path)
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == vector.model_name
    assert vector.metadata["verdict"] in card
    assert vector.metadata["dataset_sha256"] in card
    rows = re.findall(r"^\| (\w+) \| (\d+) %", card, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["unsteered", "prompted", "steered", "random", "negated"]


def test_the_card_of_a_learned_vector_says_how_it_was_learned(vector, tmp_path):
    curve = [{"round": 1, "loss": 4.5, "validation": None}, {"round": 2, "loss": 4.2, "validation": 4.0}]
    learned = replace(
        vector,
        extraction_config=vector.extraction_config | {"learning": {"objective": "likelihood"}},
        metadata=vector.metadata | {"learning": {"curve": curve, "best_round": 1}},
    )
    share(learned, tmp_path)
    assert "| learned | 2 rounds of likelihood, best after 1 |" in (tmp_path / "README.md").read_text()


def test_a_vector_of_a_sum_can_be_shared_without_an_evaluation(vector, tmp_path):
    share(0.5 * vector, tmp_path)
    assert "Not evaluated" in (tmp_path / "README.md").read_text()
    assert load_shared(tmp_path) == 0.5 * vector


def test_a_folder_without_a_vector_or_with_two_is_refused_by_name(vector, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VectorError, match="none"):
        load_shared(tmp_path / "empty")
    share(vector, tmp_path)
    vector.save(tmp_path / "second.safetensors")
    with pytest.raises(VectorError, match=r"second\.safetensors"):
        load_shared(tmp_path)


def test_a_vector_goes_through_the_terminal_evaluated_exported_and_steering(vector, svf, tmp_path):
    mine = tmp_path / "steering_vectors" / "mine.pt"
    vector.save(mine)
    config = tmp_path / "config.yaml"
    settings = {"device": "cpu", "load_in_8bit": False, "evaluation": {"limit": 3, "choice_limit": 2, "cells": 1}}
    settings["evaluation"] |= {"max_new_tokens": 8, "positions": [1]}
    config.write_text(yaml.safe_dump(settings))
    assets = tmp_path / "sam" / "assets" / "steering_vectors"
    write_sam_assets(load_style(STYLE), replace(vector, metadata={}), assets)  # before it was evaluated
    said = svf("evaluate", mine, "--strength", 2, "--strength", 3, "--json")
    assert said.status in (0, 1), said.err
    (evaluation,) = json.loads(said.out)
    assert SteeringVector.load(mine).metadata["verdict"] == evaluation["verdict"]
    assert PromptSteerer(assets).templates[STYLE]["metadata"]["verdict"] == evaluation["verdict"]
    assert SteeringVector.load(assets / f"{STYLE}.pt").metadata["verdict"] == evaluation["verdict"]
    assert svf("export", mine, "--output", "out").status == 0
    steered = svf("steer", "out/mine", "-p", "Why?", "--strength", 1, "--strength", 2, "--max-new-tokens", 4, "--json")
    answers = json.loads(steered.out)["answers"]
    assert list(answers) == ["unsteered", "strength 1", "strength 2", "prompted"]


def test_a_shared_vector_is_fetched_from_a_hub_by_its_id(vector, tmp_path):
    share(vector, tmp_path / "pushed")
    load = "import sys; from factory import load_shared; sys.stdout.write(load_shared(sys.argv[1]).style_name)"
    with running_hub("lab/steps", tmp_path / "pushed") as address:
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}

        def fetch(name):  # a process of its own: the hub's client reads its address once
            command = [sys.executable, "-c", load, name]
            return subprocess.run(
                command, check=False, env=os.environ | hub, capture_output=True, text=True, timeout=60
            )

        found, missing = fetch("lab/steps"), fetch("lab/nothing")

    assert found.stdout == vector.style_name
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert "HubError: 'lab/nothing' is no file or folder here, and cannot be fetched" in missing.stderr


@pytest.mark.parametrize("name", ["/tmp/elsewhere/model", "../../up", "a/b", "..", "C:\\\\x", "x\\x00y"])
def test_a_vector_is_shared_into_its_folder_whatever_its_style_is_called(vector, tmp_path, name):
    path = share(replace(vector, style_name=name), tmp_path / "shared")
    assert path.parent == tmp_path / "shared"
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {path.name, "README.md"}


def test_a_models_name_in_a_card_stays_text(vector, tmp_path):
    name = 'x"); import os; os.system("id") #'
    share(replace(vector, model_name=name), tmp_path)
    assert 'load_target("x")' not in (tmp_path / "README.md").read_text()


def test_a_file_whose_names_are_no_names_is_refused(vector):
    raw = replace(vector, style_name="two\nlines").to_pt()
    with pytest.raises(VectorError, match="style_name should be one line"):
        SteeringVector.from_bytes(raw, "v.pt")
