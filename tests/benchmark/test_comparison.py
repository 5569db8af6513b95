"""The comparison's table on a tiny, random model: every row is made, kept, and read again."""

import json
from dataclasses import replace

import pytest
import yaml

from benchmarks import comparison
from tests.conftest import save_tiny_model

STYLE = "step_by_step_reasoning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, starter_pairs):
    folder = tmp_path_factory.mktemp("comparison")
    texts = [text for pair in starter_pairs for text in (pair.question, pair.positive_response)]
    save_tiny_model(folder / "model", texts)
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load(comparison.TABLE.parents[1].joinpath("benchmarks/comparison.yaml").read_text())
    config |= {
        "models": {"tiny": {"source": str(folder / "model"), "dtype": "float32", "cache_steering_strength": 6}},
        "styles": [STYLE],
        "tasks": {"sums": str(folder / "sums.jsonl"), "absent": str(folder / "absent.jsonl")},
        "answer_tokens": 8,
        "worked_tokens": 4,
        "learning": {"rounds": 2},
        "cache_steering": {"n_shots": 2, "max_sequence_length": 2048},
        "mean": {"strengths": [2, 4], "positions": [1]},
        "residual": {"depths": [0.5], "multipliers": [1, 2]},
    }
    (folder / "comparison.yaml").write_text(yaml.safe_dump(config))
    return folder


def words(folder, *more):
    paths = {"config": "comparison.yaml", "store": "runs", "table": "table.md"}
    return [word for name, path in paths.items() for word in (f"--{name}", str(folder / path))] + [
        "--limit",
        "3",
        *more,
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_table_is_made_row_by_row_and_an_interrupted_one_goes_on(folder, monkeypatch):
    comparison.main(words(folder, "--row", "unsteered", "--row", "prompted"))
    table = (folder / "table.md").read_text()
    assert "Not measured yet: few-shot, cache-steering, mean, learned, residual." in table
    measured = []
    measure = comparison.Arena.measure
    monkeypatch.setattr(comparison.Arena, "measure", lambda self, one: measured.append(one) or measure(self, one))
    comparison.main(words(folder))
    table = (folder / "table.md").read_text()
    assert len(measured) == 5, "two rows were done before"
    assert all(f"\n| {row} |" in table for row in comparison.ROWS)
    assert "Not measured yet" not in table
    assert "(0% to" in table, "shares have their intervals"
    comparison.main(words(folder))
    assert len(measured) == 5


def test_hooks_of_another_library_steer_and_are_gone_afterwards(folder):
    config = comparison.Config.model_validate(yaml.safe_load((folder / "comparison.yaml").read_text())).limited(3)
    given = comparison.parse(words(folder))
    session = comparison.Session(given, config, {}, comparison.Console(stderr=True))
    target = session.load(config.models["tiny"].source, config.models["tiny"].dtype)
    store = comparison.Store(f"memory://{folder.name}")
    arena = comparison.open_arena(target, STYLE, (config, config.models["tiny"]), {}, store)
    bare = comparison.Contestant("")
    before = arena.said(bare, arena.held_out)
    found = arena.residual()
    strong = replace(found, residual=replace(found.residual, multiplier=1000.0))
    assert arena.said(strong, arena.held_out) != before
    assert not any(module._forward_hooks for module in target.model.modules())
    with bare.applied(target):
        fresh = comparison.Store(f"memory://{folder.name}-fresh")
        assert replace(arena, store=fresh).said(bare, arena.held_out) == before


def test_a_setting_of_one_way_leaves_the_rows_of_others_as_they_are(folder):
    config = comparison.Config.model_validate(yaml.safe_load((folder / "comparison.yaml").read_text())).limited(3)
    model = config.models["tiny"]
    changed = config.model_copy(update={"learning": config.learning.model_copy(update={"rounds": 3})})
    target = comparison.load_target(model.source, "cpu", dtype="float32")
    store = comparison.Store(f"memory://{folder.name}-rows")
    before, after = (comparison.open_arena(target, STYLE, (each, model), {}, store) for each in (config, changed))
    assert changed_rows(before, after) == ["learned"]
    stronger = replace(before, authors_strength=model.cache_steering_strength + 1)
    assert changed_rows(before, stronger) == ["cache-steering"]


def changed_rows(before, after):
    return [row for row in comparison.ROWS if before.identity(row) != after.identity(row)]
