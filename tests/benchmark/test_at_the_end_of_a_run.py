"""Tasks with checkable answers within a run: planned with it, done part by part, kept in the vector and shown."""

import json

import pytest

from factory.benchmark.outcome import BASES, read_tasks
from factory.errors import BenchmarkError
from factory.planning.estimate import estimate_run
from factory.planning.plan import plan_run
from factory.report.page import render_report
from factory.run.progress import progress_of
from factory.steps.evaluate import conclude_step, evaluate_step
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.conftest import save_tiny_model
from tests.evaluated import SWEEP, do_evaluation, make_run

STYLE = "step_by_step_reasoning"


@pytest.fixture(scope="module")
def run(tmp_path_factory, starter_pairs):
    """A run whose vector is made, with two tasks; one of them asks a question that a pair asks."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [text for pair in starter_pairs for text in (pair.question, pair.positive_response)]
    save_tiny_model(folder / "model", texts)
    sums = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(3)]
    asked = {"question": starter_pairs[0].question, "answer": "1"}
    places = [{"question": f"Where is house {n}?", "answer": "B", "choices": ["here", "there"]} for n in range(2)]
    for name, rows in (("sums", [*sums, asked]), ("places", places)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [str(folder / "sums.jsonl"), str(folder / "places.jsonl")]
    evaluation = SWEEP.model_copy(update={"tasks": tasks, "task_limit": 9})
    store = Store(str(folder / "runs"))
    ledger, settings = make_run(folder / "model", folder, store, [STYLE], {"evaluation": evaluation})
    return ledger, settings, folder


def test_a_run_plans_its_tasks_without_what_its_pairs_ask(run):
    ledger, settings, folder = run
    sums, places = ledger.spec.tasks
    assert [item.question for item in sums.items] == [f"What is {n} plus 1?" for n in range(3)]
    assert (sums.left_out, places.left_out) == (1, 0)
    assert progress_of(ledger.of(STYLE)).parts == len(ledger.spec.evaluation.parts) + 2 * len(BASES)
    notes = "\n".join(estimate_run(settings, Store(str(folder / "empty")), folder, limit=6).notes)
    assert (
        "task sums: 15 answers of the target model of up to 256 tokens (3 items, 5 conditions per style; 1 more"
        in notes
    )


def test_a_mistyped_task_is_refused_before_anything_is_written(run):
    _, settings, folder = run
    wrong = settings.model_copy(update={"evaluation": SWEEP.model_copy(update={"tasks": ["nothing.jsonl"]})})
    store = Store(str(folder / "refused"))
    with pytest.raises(BenchmarkError, match=r"nothing\.jsonl"):
        plan_run(wrong, store, folder, limit=6)
    assert store.names() == []


def test_every_condition_of_a_task_is_a_part_and_the_vector_says_what_they_came_to(run, monkeypatch):
    ledger, settings, _ = run
    page = ledger.of(STYLE)
    do_evaluation(ledger, STYLE, settings)
    monkeypatch.setattr("factory.steps.evaluate.do_task", lambda *_: pytest.fail("done again"))
    evaluate_step(page, ledger.spec.n_parts - 1, settings)
    conclude_step(page)
    vector = SteeringVector.from_bytes(page.store.read(page.vector_key), source="")
    results = read_tasks(vector.metadata)
    assert [result.task for result in results] == ["sums", "places"]
    for result, task in zip(results, ledger.spec.tasks, strict=True):
        assert result.items_sha256 == task.sha256
        assert [outcome.condition for outcome in result.outcomes] == list(BASES)
        for outcome in result.outcomes:
            assert outcome.accuracy.n == len(task.items)
            assert tuple(found.base for found in outcome.comparisons) == BASES[outcome.role]
            assert (outcome.by_likelihood is not None) == task.has_choices
    text = render_report(ledger)
    assert "Right answers to 3 items of sums" in text
    assert "Right answers to 2 items of places" in text
