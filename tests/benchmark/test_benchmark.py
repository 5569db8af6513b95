"""A benchmark on a real (tiny, random) model: conditions on the same items, held against each other."""

import json
from dataclasses import replace

import pytest
import torch

from factory import Steering, build_vector, load_style, load_target
from factory.benchmark.condition import BARE, baselines, steered
from factory.benchmark.extractor import extract_number, extract_text
from factory.benchmark.item import Item, Task
from factory.benchmark.likelihood import likeliest_letters
from factory.benchmark.outcome import BASES
from factory.benchmark.run import Bench, Budget, run_task
from factory.commands.benchmark import names_of
from factory.errors import BenchmarkError
from factory.evaluation import answers
from factory.evaluation.answers import Questioning, ask
from factory.pairs.heldout import asked_hashes, hash_questions
from factory.store import Store
from tests.conftest import save_tiny_model

PLACES = ("the hill", "the sea", "the moon", "the town")


@pytest.fixture(scope="module")
def target(tmp_path_factory, starter_pairs):
    texts = [text for pair in starter_pairs for text in (pair.question, pair.positive_response)]
    return load_target(str(save_tiny_model(tmp_path_factory.mktemp("model"), texts)), device="cpu")


@pytest.fixture(scope="module")
def vector(target, starter_pairs):
    return build_vector(starter_pairs[:6], target, style="step_by_step_reasoning", recipe="fewshot", layers="all")


def choice_task(n=7):
    items = (Item(question=f"Where is house {n * 'x'}?", answer="A", choices=PLACES) for n in range(1, n + 1))
    return Task(name="places", items=tuple(items))


def naive_letter(target, item):
    """One item at a time, the whole prompt in one pass, no cache."""
    prompt = [*target.prompt_ids([{"role": "user", "content": item.prompt}]), target.neutral_id]
    with torch.inference_mode():
        likely = target.model(torch.tensor([prompt])).logits[0, -1]
    return max(item.letters, key=lambda letter: float(likely[target.text_ids(letter)[0]]))


def test_the_likeliest_letter_of_a_batch_is_that_of_each_item_alone(target):
    items = choice_task().items
    assert likeliest_letters(target, items, BARE, Store("memory://letters")) == [
        naive_letter(target, item) for item in items
    ]


def test_what_the_bare_model_finds_likeliest_is_right_where_the_key_says_so(target):
    task = choice_task()
    letters = [naive_letter(target, item) for item in task.items]
    planted = [item.model_copy(update={"answer": letter}) for item, letter in zip(task.items, letters, strict=True)]
    task = task.model_copy(update={"items": tuple(planted)})
    outcome = Bench(target, Store("memory://planted"), Budget(4)).examine(task, BARE)
    assert outcome.by_likelihood.share == 1.0


def test_a_vector_that_breaks_answers_loses_the_paired_comparison(target, vector):
    numbers = tuple(f"Say a number, the {n}th: {n * 7} {n * 7} {n * 7}" for n in range(1, 13))
    asked = Questioning(tuple(Item(question=text, answer="1").prompt for text in numbers), 12)
    said = ask(target, asked, Store("memory://key"))
    items = (
        Item(question=text, answer=extract_number(answer) or extract_text(answer))
        for text, answer in zip(numbers, said, strict=True)
    )
    task = Task(name="said", items=tuple(items))
    conditions = [BARE, *steered(Steering(vector, strength=500.0))]
    result = run_task(target, task, conditions, Store("memory://broken"), budget=Budget(12))
    assert result.outcome("unsteered").accuracy.share == 1.0, "the key is what the bare model says"
    comparison = result.comparison("steered", "unsteered")
    assert comparison.lost > comparison.won == 0
    assert comparison.p < 0.05
    assert result.items_sha256 == task.sha256


def test_answers_are_asked_once_and_an_interrupted_benchmark_goes_on_behind_its_last_batch(target, monkeypatch):
    monkeypatch.setattr("factory.benchmark.run.ANSWER_BATCH", 3)
    task, store, asked = choice_task(7), Store("memory://interrupted"), []

    def stop(n_items):
        asked.append(n_items)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(target, task, [BARE], store, budget=Budget(4), after=stop)
    generate = answers.generate_batch
    batches = []
    monkeypatch.setattr(answers, "generate_batch", lambda *a, **n: batches.append(len(a[1])) or generate(*a, **n))
    first = run_task(target, task, [BARE], store, budget=Budget(4))
    assert batches == [1], "6 of 7 items were answered before"
    assert run_task(target, task, [BARE], store, budget=Budget(4)) == first
    assert batches == [1]
    whole = run_task(target, task, [BARE], Store("memory://uninterrupted"), budget=Budget(4))
    assert whole == first


def test_a_style_is_asked_for_in_words_and_shown_by_examples(starter_pairs):
    style = load_style("step_by_step_reasoning")
    bare, prompted, shown = baselines(style, starter_pairs)
    assert (bare.system, bare.examples) == (None, ())
    assert prompted.system == style.instruction()
    assert shown.examples[0] == (starter_pairs[0].question, starter_pairs[0].positive_response)
    assert len(baselines(style)) == 2, "without pairs there is nothing to show"


def test_examples_come_before_the_question_as_turns():
    asked = Questioning(("q3",), 4, system="be brief", examples=(("q1", "a1"), ("q2", "a2")))
    (messages,) = asked.conversations()
    assert [(m["role"], m["content"]) for m in messages] == [
        *(("system", "be brief"), ("user", "q1"), ("assistant", "a1")),
        *(("user", "q2"), ("assistant", "a2"), ("user", "q3")),
    ]


def test_each_vector_is_held_against_the_words_for_its_own_style(target, vector, starter_pairs):
    other = replace(vector, style_name="creative_explorer")
    conditions = {}
    for name in ("step_by_step_reasoning", "creative_explorer"):
        conditions |= {one.name: one for one in baselines(load_style(name), starter_pairs[:4], of=name)}
    for name, made in (("steps", vector), ("ideas", other)):
        conditions |= {one.name: one for one in steered(Steering(made), name, of=made.style_name)}
    task = choice_task(3)
    result = run_task(target, task, list(conditions.values()), Store("memory://styles"), budget=Budget(2))
    bases = {outcome.condition: [found.base for found in outcome.comparisons] for outcome in result.outcomes}
    assert bases["unsteered"] == []
    for name, style in (("steps", "step_by_step_reasoning"), ("ideas", "creative_explorer")):
        words = f"prompted for {style}"
        assert bases[words] == ["unsteered"]
        assert bases[f"few-shot for {style}"] == ["unsteered", words]
        assert bases[name] == ["unsteered", words, f"random for {name}"]
        assert result.comparison(name, "prompted").base == words, "that is what the table shows"


def test_vectors_of_one_file_name_are_told_apart(tmp_path):
    paths = [tmp_path / "a" / "steps.pt", tmp_path / "b" / "steps.pt", tmp_path / "b" / "ideas.pt"]
    assert list(names_of(paths).values()) == [str(paths[0]), str(paths[1]), "ideas"]
    assert names_of([tmp_path / "unsteered.pt", paths[0]])[tmp_path / "unsteered.pt"] not in BASES
    assert names_of(paths[:1]) == {paths[0]: ""}


def test_items_that_a_vector_was_made_from_are_left_out(vector, starter_pairs):
    rows = [*(pair.question for pair in starter_pairs[:2]), "What is 2 + 2?", "What is 3 + 3?"]
    task = Task(name="mixed", items=tuple(Item(question=row, answer="4") for row in rows))
    kept = task.without(asked_hashes(vector.metadata))
    assert [item.question for item in kept.items] == rows[2:]
    assert (kept.left_out, task.without([]).left_out) == (2, 0)
    with pytest.raises(BenchmarkError, match="needs 2 others"):
        task.without(hash_questions(rows[1:]))
    asked = [item.prompt for item in task.items[2:]]  # pairs may ask as the benchmark does
    assert len(task.without(hash_questions(asked)).items) == 2


@pytest.mark.slow
def test_svf_benchmark_prints_json_for_a_program_and_a_table_for_a_person(svf, target, vector, tmp_path):
    vector.save(tmp_path / "steps.pt")
    rows = [{"question": f"q{n}", "answer": str(n)} for n in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["benchmark", "steps.pt", "-t", "items.jsonl", "--max-new-tokens", "4", "--config", "config.yaml"]
    (tmp_path / "config.yaml").write_text(f"target_model: {target.name}\nload_in_8bit: false\nthreads: 1\n")
    ended = svf(*words, "--json", cwd=tmp_path)
    assert ended.status == 0, ended.err
    (result,) = json.loads(ended.out)
    assert [outcome["condition"] for outcome in result["outcomes"]] == [
        *("unsteered", "prompted", "few-shot", "steered", "random"),
    ]
    table = svf(*words, cwd=tmp_path, COLUMNS="80")
    *lines, legend = table.out.splitlines()
    assert "McNemar" in legend  # a sentence, which is left whole where no person looks
    assert max(map(len, lines)) <= 80


def test_a_mistyped_task_is_refused_before_the_model_is_loaded(svf, vector, tmp_path):
    vector.save(tmp_path / "steps.pt")
    ended = svf("benchmark", "steps.pt", "-t", "nothing.jsonl", cwd=tmp_path)
    assert ended.status == 2
    assert "nothing.jsonl" in ended.err
    assert "loading" not in ended.err
