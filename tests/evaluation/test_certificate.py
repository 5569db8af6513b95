"""The certificate: the same bytes from two runs, and what was changed since is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from factory.cli import svf
from factory.errors import ConfigError
from factory.evaluation.certificate import Certificate, compare_certificates, question_hash
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.evaluated import SWEEP, finish_run, make_run

STYLE = "step_by_step_reasoning"


def items_in(folder):
    """A file of items, of which a run asks three."""
    file = folder / "places.jsonl"
    rows = [{"question": f"Where is house {n}?", "answer": "AB"[n % 2], "choices": ["here", "there"]} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def made_in(folder, target_folder):
    """The vector of a run in ``folder``, evaluated, with a task."""
    tasks = {"evaluation": SWEEP.model_copy(update={"tasks": [str(items_in(folder))], "task_limit": 3})}
    ledger, settings = make_run(target_folder, folder, Store(str(folder / "runs")), [STYLE], tasks)
    finish_run(ledger, settings)
    return SteeringVector.from_bytes(ledger.store.read(ledger.of(STYLE).vector_key), "v.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder):
    """A folder with a run, its certified vector, and a configuration for the model on this machine."""
    folder = tmp_path_factory.mktemp("certified")
    made_in(folder, target_folder).save(folder / "v.pt")
    evaluation = SWEEP.model_copy(update={"tasks": [str(folder / "places.jsonl")]})
    settings = {"device": "cpu", "load_in_8bit": False, "evaluation": evaluation.model_dump()}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def certificate(folder):
    return Certificate.read(SteeringVector.load(folder / "v.pt").metadata)


def certify(folder, capsys, *words, file="v.pt"):
    """Exit status of ``svf certify``, and the entries that do not hold."""
    words = ["certify", folder / file, "--config", folder / "cpu.yaml", "--output", folder, "--json", *words]
    status = svf.main([str(word) for word in words], standalone_mode=False)
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert len(entries) > 100
    return status, {entry["name"] for entry in entries if not entry["holds"]}


def test_two_runs_in_other_folders_give_the_same_certificate_bytes(certificate, tmp_path, target_folder):
    again = Certificate.read(made_in(tmp_path, target_folder).metadata)
    assert json.dumps(again.to_json()) == json.dumps(certificate.to_json())


def test_a_certificate_says_nothing_of_hosts_folders_and_times(certificate, folder, target_folder):
    text = json.dumps(certificate.to_json() | {"environments": ()})
    assert str(folder) not in text
    assert "answers/" not in text
    (place,) = certificate.environments
    assert place.model == str(target_folder)
    assert place.model_revision
    assert {"torch", "transformers", "python"} <= set(place.versions)


@pytest.mark.parametrize("anew", [(), pytest.param(("--anew",), marks=pytest.mark.slow)])
def test_every_entry_of_an_honest_certificate_holds_from_the_store_and_anew(folder, capsys, anew):
    assert certify(folder, capsys, *anew) == (0, set())


def test_a_task_is_asked_again_and_an_edited_count_of_right_answers_is_named(folder, capsys):
    vector = SteeringVector.load(folder / "v.pt")
    certified = vector.metadata["certificate"]
    (task,) = certified["tasks"]
    assert (task["name"], task["limit"], len(task["items"])) == ("places", 3, 3)
    assert set(task["right"]) == {"unsteered", "prompted", "random", "steered"}
    right = task["right"] | {"steered": 3 - task["right"]["steered"]}
    edited = certified | {"tasks": [task | {"right": right}]}
    replace(vector, metadata=vector.metadata | {"certificate": edited}).save(folder / "boasting.pt")
    assert certify(folder, capsys, file="boasting.pt") == (1, {"tasks.places.right.steered"})


def test_a_task_whose_items_are_gone_is_named_and_fails_nothing(folder, capsys, tmp_path):
    (tmp_path / "places.jsonl").write_text('{"question": "Q?", "answer": "1"}\n{"question": "R?", "answer": "2"}\n')
    words = ["certify", folder / "v.pt", "--config", folder / "cpu.yaml", "--output", folder, "--json"]
    words += ["--task", tmp_path / "places.jsonl"]
    status = svf.main([str(word) for word in words], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert (status, said["holds"]) == (0, True)
    gone, in_context = said["not_measured_again"]
    assert gone.startswith("task places: 3 of its 3 items are not in")
    assert in_context == "tasks with examples in context"


def test_an_edited_effect_and_an_edited_vector_are_named(folder, capsys):
    vector = SteeringVector.load(folder / "v.pt")
    evaluation = vector.metadata["evaluation"] | {"effect": 0.9}
    louder = replace(
        vector, value_vector=vector.value_vector * 2, metadata=vector.metadata | {"evaluation": evaluation}
    )
    louder.save(folder / "edited.pt")
    status, failed = certify(folder, capsys, file="edited.pt")
    assert status == 1
    assert {"stated.effect", "vector_sha256"} <= failed
    assert not {"dataset_sha256", "style_sha256", "seeds.bootstrap", "effect"} & failed


def test_another_machine_is_named_and_leaves_the_rest(certificate):
    (place,) = certificate.environments
    there = certificate.model_copy(update={"environments": (place.model_copy(update={"machine": "abacus"}),)})
    failed = [line for line in compare_certificates(there, certificate) if not line.holds]
    assert [(line.name, line.certified) for line in failed] == [("environments.0.machine", "abacus")]


def test_questions_that_are_not_at_hand_are_asked_for(certificate):
    with pytest.raises(ConfigError, match="--questions"):
        certificate.spec({question_hash("Why?"): "Why?"})


def test_a_vector_without_a_certificate_says_what_writes_one(folder):
    plain = replace(SteeringVector.load(folder / "v.pt"), metadata={})
    plain.save(folder / "plain.pt")
    with pytest.raises(ConfigError, match="svf evaluate"):
        svf.main(["certify", str(folder / "plain.pt")], standalone_mode=False)
