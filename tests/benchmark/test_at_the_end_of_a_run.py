"""Tasks with checkable answers within a run: planned with it, done part by part, kept in the vector and shown."""

import json
from pathlib import Path

import pytest

from factory.benchmark.outcome import BASES, WITH_MEAN, read_tasks
from factory.errors import BenchmarkError
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.spec import MEAN
from factory.planning.estimate import estimate_run
from factory.planning.notices import describe_tasks
from factory.planning.plan import plan_run
from factory.planning.specify import plan_evaluation
from factory.report import figures
from factory.report.page import render_report, write_summary
from factory.run.progress import progress_of
from factory.steps.evaluate import conclude_step, evaluate_step
from factory.store import Store
from factory.vector.vector import SteeringVector
from tests.conftest import save_tiny_model
from tests.evaluated import SWEEP, do_evaluation, finish_run, make_run

STYLE = "step_by_step_reasoning"


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """A random model never comes to an end by itself."""
    monkeypatch.setattr("factory.benchmark.item.WORKED_TOKENS", 12)
    monkeypatch.setattr("factory.benchmark.item.LETTER_TOKENS", 6)


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
        "task sums: 15 answers of the target model of up to 12 tokens (3 items, 5 conditions per style; 1 more" in notes
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
    found = Evaluation.read(vector.metadata)
    assert [(one.task, one.n) for one in found.right_answers] == [("sums", 3), ("places", 2)]
    assert "items of sums" in next(check.said for check in found.checks if check.name == "right answers")


def test_report_and_summary_show_a_forest_plot_of_each_task(run):
    ledger, settings, _ = run
    do_evaluation(ledger, STYLE, settings)
    conclude_step(ledger.of(STYLE))
    for text in (render_report(ledger), Path(write_summary(ledger)).read_text()):
        for number, title in enumerate(("3 items of sums", "2 items of places"), 1):
            name = f"{STYLE}-task-{number}"
            assert f'<title id="{name}-title">Right answers to {title}</title>' in text
            described = text.partition(f'<desc id="{name}-desc">')[2].partition("</desc>")[0]
            assert all(f"{condition} " in described for condition in BASES)


def test_a_run_that_learns_puts_the_mean_to_its_tasks_too_and_its_parts_come_last(run):
    ledger, settings, _ = run
    learns = settings.model_copy(update={"learning": settings.learning.model_copy(update={"rounds": 1})})
    spec = ledger.spec.model_copy(update={"evaluation": plan_evaluation(learns)})
    before, after = ledger.spec.task_parts, spec.task_parts
    assert after[: len(before)] == before
    assert [(part.task.name, part.role) for part in after[len(before) :]] == [("sums", MEAN), ("places", MEAN)]
    (note, _) = describe_tasks(spec.tasks, 1, spec.evaluation)
    assert "(3 items, 6 conditions per style" in note


def test_a_learned_vector_is_held_against_its_mean_on_a_task(run):
    _, settings, folder = run
    settings = settings.model_copy(
        update={
            "evaluation": settings.evaluation.model_copy(update={"tasks": [str(folder / "places.jsonl")]}),
            "learning": settings.learning.model_copy(update={"rounds": 1, "response_tokens": 8}),
        }
    )
    ledger, settings = make_run(folder / "model", folder, Store(str(folder / "learned")), [STYLE], dict(settings))
    finish_run(ledger, settings)
    vector = SteeringVector.from_bytes(ledger.store.read(ledger.of(STYLE).vector_key), source="")
    (result,) = read_tasks(vector.metadata)
    assert {outcome.role for outcome in result.outcomes} == set(WITH_MEAN)
    assert result.comparison("steered", MEAN).base == MEAN
    assert f"{MEAN} " in figures.forest_figure("x", result)
