"""What earlier versions have written down of an evaluation stays readable, field by field."""

import json

import pytest

from factory.errors import VectorError
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.parts import Answered, PartsDone, Tried, Untried, kind_of_part
from tests.conftest import ROOT

KEPT = json.loads((ROOT / "tests" / "evaluation" / "before_typed.json").read_text())


def read_part(name):
    content = {field: value for field, value in KEPT["parts"][name].items() if field != "done"}
    return kind_of_part(name, content).model_validate(content), content


@pytest.mark.parametrize("name", KEPT["parts"])
def test_a_part_of_an_earlier_version_is_read_and_written_as_it_was(name):
    part, content = read_part(name)
    assert part.to_json() == content


def test_an_evaluation_of_an_earlier_version_is_read_and_written_as_it_was():
    evaluation = Evaluation.read({"evaluation": KEPT["evaluation"], "other": 1})
    assert evaluation.to_json() == KEPT["evaluation"]


def test_parts_are_told_apart_by_kind_and_the_probe_s_order_stays():
    parts = {name: read_part(name)[0] for name in reversed(KEPT["parts"])}
    done = PartsDone.of(parts | {"cell-2": kind_of_part("cell-2", {}).model_validate({})})
    assert set(done.states) == {"unsteered", "prompted", "steered", "random", "negated"}
    assert all(isinstance(part, Answered) for part in done.states.values())
    assert [isinstance(cell, Tried) for cell in done.cells] == [True, True]
    assert done.cells[0].gate
    assert not done.cells[1].gate
    assert done.capability.n == 12
    assert kind_of_part("cell-9", {}) is Untried


def test_a_field_of_a_newer_version_is_not_read_and_a_damaged_one_is_named():
    newer = Evaluation.read({"evaluation": KEPT["evaluation"] | {"of_a_newer_version": 1}})
    assert newer == Evaluation.read({"evaluation": KEPT["evaluation"]})
    damaged = KEPT["evaluation"] | {"effect": "much"}
    with pytest.raises(VectorError, match="effect"):
        Evaluation.read({"evaluation": damaged})
    assert Evaluation.read({}) is None
