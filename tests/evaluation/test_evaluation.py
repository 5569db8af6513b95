"""Evaluation: figures against naive counting, and a verdict on effects that were planted."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from math import log

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import ConfigError, StoreError
from factory.evaluation.bootstrap import bootstrap_interval
from factory.evaluation.cell import Cell
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.examiner import Examiner, evaluate, random_like
from factory.evaluation.figures import AnswerFigures, Capability, Check
from factory.evaluation.parts import Answered, PartsDone, Tried
from factory.evaluation.probe import Probe, apply_cell
from factory.evaluation.rules import Gains, judge
from factory.evaluation.score import gain, score
from factory.evaluation.spec import EvaluationSpec
from factory.evaluation.surprise import Surprise
from factory.evaluation.verdict import add_evaluation, advise, choose_cell, conclude, specificity_of
from factory.pairs.fluency import distinct_ngrams, is_looping
from factory.pairs.styles import Style, load_style
from factory.planning.specify import plan_evaluation
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.steps.evaluate import conclude_step, evaluate_step, give_up_evaluation
from factory.store import Store
from factory.vector.recommendation import AS_LEARNED, Recommendation
from factory.vector.steer import Steering, as_messages, generate_batch
from factory.vector.vector import SteeringVector
from tests.conftest import MEANS
from tests.evaluated import SWEEP, do_evaluation, make_run

STRONG = 400.0
QUESTIONS = tuple(f"Why does thing number {number} matter?" for number in range(12))
SPEC = EvaluationSpec(
    questions=QUESTIONS[:8],
    choice_questions=QUESTIONS[8:],
    probe_questions=QUESTIONS[8:10],
    cells=2,
    max_loops=1.0,  # a random model says little else
    strengths=(1.0, STRONG),
    positions=(1,),
    layer_sets=("all",),
    max_new_tokens=12,
)


def make_style(**given_) -> Style:
    named = {"name": "planted", "description": "d", "positive_prompt": "{question}", "negative_prompt": "{question}"}
    return Style(**(named | given_))


def make_vector(target, seed=3) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    shape = (target.n_layers, *target.shape)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    return SteeringVector("planted", keys, values, list(range(target.n_layers)), target.name)


@pytest.fixture(scope="module")
def planted(target):
    """A vector, and a style whose only marker is what the strongly steered model begins with."""
    vector = make_vector(target)
    conversations = [as_messages(question) for question in QUESTIONS]
    firsts, plain = (
        generate_batch(target, conversations, steering=steering, max_new_tokens=n)
        for steering, n in ((Steering(vector, STRONG), 1), (None, 12))
    )
    opening = max(set(firsts), key=firsts.count)
    assert opening, "nothing readable is said: choose another seed"
    assert firsts.count(opening) >= 10, "the planted effect is weak: choose another seed"
    assert sum(opening in answer for answer in plain) <= 2
    return vector, make_style(markers=[re.escape(opening)], openings=[opening], min_markers=1)


# ---- fluency and intervals


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=4, max_size=40))
def test_distinct_ngrams_equal_naive_counting(words):
    seen, total = [], 0
    for at in range(len(words) - 3):
        total += 1
        ngram = words[at : at + 4]
        if ngram not in seen:
            seen.append(ngram)
    assert distinct_ngrams(" ".join(words)) == len(seen) / total


def test_a_loop_is_told_from_an_ordinary_answer():
    assert is_looping("Step 1: go. " * 12)
    assert is_looping("\n".join(f"Step {n}:" for n in range(1, 12)))  # counting up says nothing new
    assert not is_looping("The sky is blue because air scatters short waves more than long ones, in all directions.")
    assert not is_looping("Yes yes yes")


def test_the_bootstrap_interval_agrees_with_a_naive_bootstrap():
    scores = [0.0] * 13 + [1.0] * 17
    dice = random.Random(4)
    means = sorted(sum(dice.choices(scores, k=len(scores))) / len(scores) for _ in range(20_000))
    naive = means[int(0.025 * len(means))], means[int(0.975 * len(means))]
    assert bootstrap_interval(scores, resamples=20_000) == pytest.approx(naive, abs=0.035)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_an_interval_lies_within_the_scores_around_nothing_random(scores):
    low, high = bootstrap_interval(scores)
    assert min(scores) - 1e-4 <= low <= high <= max(scores) + 1e-4
    assert (low, high) == bootstrap_interval(scores)


def test_a_gain_is_paired_by_question():
    assert gain([1, 1, 0, 1], [0, 0, 0, 0])[0] == 0.75
    assert gain([3, 4, 5], [1, 2, 3]) == (2.0, (2.0, 2.0))  # the same gain everywhere: no doubt


def test_scores_equal_naive_counting():
    style = load_style("step_by_step_reasoning")
    answers = ["Step 1: look.\nStep 2: see.", "Just prose.", "Step 1: only."]
    figures = score(answers, style, [Surprise(log(2), None), None, Surprise(log(4), None)])
    assert figures.shown == (2, 0, 1)
    assert figures.in_style == (1, 0, 0)
    assert figures.share == pytest.approx(1 / 3, abs=1e-4)
    assert figures.perplexity == 3.0


# ---- planted effects


def test_a_planted_effect_is_found_and_its_controls_do_nothing(target, planted):
    vector, style = planted
    evaluation, done = evaluate(Examiner(target, vector, style, SPEC, Store("memory://planted")))
    assert evaluation.setting.strength == STRONG
    assert evaluation.effect >= 0.75
    assert evaluation.interval[0] > 0
    for control in ("unsteered", "random", "negated"):
        assert evaluation.measured[control].share <= 0.25
    assert set(done.states) | {"cell-0", "cell-1", "capability"} == set(SPEC.parts)
    assert len(done.cells) == 2


def test_a_vector_of_nothing_is_called_so_with_advice(target, planted):
    vector, style = planted
    nothing = replace(vector, value_vector=torch.zeros_like(vector.value_vector))
    evaluation, _ = evaluate(Examiner(target, nothing, style, SPEC, Store("memory://nothing")))
    assert evaluation.verdict == "no effect"
    assert evaluation.effect == 0.0
    assert "layers" in evaluation.advice


def test_the_verdict_lies_in_the_vector_and_steering_uses_it(target, planted):
    vector, style = planted
    evaluation, _ = evaluate(Examiner(target, vector, style, SPEC, Store("memory://planted")))
    known = SteeringVector.from_bytes(add_evaluation(vector, evaluation).to_pt(), "x.pt")
    assert known.metadata["effect"] == evaluation.effect
    assert tuple(known.metadata["interval"]) == evaluation.interval
    assert Evaluation.read(known.metadata) == evaluation
    steering = Steering.recommended(known)
    assert steering.strength == STRONG
    assert steering.vector.layer_indices == vector.layer_indices


def test_the_gate_sees_that_openings_become_likelier(target, planted):
    vector, style = planted
    probe = Probe(target, style, SPEC.probe_questions)
    weak, strong = (probe.read(vector, Cell(strength)) for strength in (0.0, STRONG))
    assert weak.openings == pytest.approx(probe.unsteered(), abs=1e-3)
    assert weak.moved == pytest.approx(0, abs=1e-4)
    assert strong.openings > weak.openings
    assert strong.moved > 0.01


def test_the_gate_agrees_with_one_plain_forward_pass(target, planted):
    _, style = planted
    question = SPEC.probe_questions[0]
    opening = target.text_ids(style.openings[0])
    prompt = [*target.prompt_ids(as_messages(question)), target.neutral_id]
    with torch.inference_mode():
        logits = target.model(input_ids=torch.tensor([[*prompt, *opening]])).logits[0].log_softmax(dim=-1)
    naive = sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(opening))
    assert Probe(target, style, [question]).unsteered() == pytest.approx(naive, abs=1e-3)


def test_the_dose_is_the_norm_of_the_edit_over_that_of_the_state_it_is_added_to(target):
    vector, question = make_vector(target), SPEC.probe_questions[0]
    read = Probe(target, make_style(), [question]).read(vector, Cell(-3.0, layers="1-2", n_positions=1))
    prompt = torch.tensor([target.prompt_ids(as_messages(question))])
    with torch.inference_mode():
        cache = target.model(input_ids=prompt, use_cache=True).past_key_values
    for dose, layer in zip(read.doses, (1, 2), strict=True):
        naive = 3 * vector.value_vector[layer].norm() / cache.layers[layer].values[0, :, -1].norm()
        assert dose == pytest.approx(float(naive), rel=1e-2)


def test_a_random_control_has_the_same_norm_at_every_layer_and_another_direction(target):
    vector = make_vector(target)
    control = random_like(vector)
    assert control.norms()["values"] == pytest.approx(vector.norms()["values"], rel=1e-5)
    assert abs(control.cosine(vector)) < 0.5
    assert torch.equal(control.value_vector, random_like(vector).value_vector)


def test_a_setting_names_layers_that_the_vector_may_lack(target):
    vector = make_vector(target).at_layers([1, 2])
    assert apply_cell(vector, Cell(1.0, layers="2-29")).vector.layer_indices == [2]
    spec = SPEC.model_copy(update={"layer_sets": ("20-29",)})
    with pytest.raises(ConfigError, match="layer_sets"):
        Examiner(target, vector, make_style(), spec, Store("memory://none")).readings()


def test_a_vector_that_lacks_layer_sets_of_the_sweep_is_evaluated_with_the_others(target, planted):
    vector, style = planted
    spec = SPEC.model_copy(update={"layer_sets": ("all", "20-29"), "cells": 4})
    evaluation, done = evaluate(Examiner(target, vector, style, spec, Store("memory://fewer")))
    assert len(done.cells) == 2
    assert {cell.setting.layers for cell in evaluation.cells} == {"all"}


# ---- choice and verdict

STRICT = SPEC.model_copy(update={"max_loops": 0.1})


def cell(strength, share, loops):
    shares = {"share": share, "loops": loops, "markers": share, "distinct_4grams": 1 - loops}
    figures = AnswerFigures(n=1, interval=(0, 1), words=1, in_style=(1,), shown=(1,), **shares)
    return tried(figures, Cell(strength))


def tried(figures, setting):
    return Tried(setting=setting, layers=(0,), figures=figures, answers="answers/0.json", openings=0, moved=0)


def test_the_chosen_setting_gains_most_among_those_that_hardly_loop():
    fluent = [cell(8, 1.0, 0.4), cell(5, 0.8, 0.1), cell(2, 0.3, 0.0)]
    assert choose_cell(fluent, STRICT).setting.strength == 5
    equal = [cell(6, 0.9, 0.1), cell(5, 0.9, 0.0)]
    assert choose_cell(equal, STRICT).setting.strength == 5
    looping = [cell(8, 1.0, 0.6), cell(5, 0.8, 0.3)]
    assert choose_cell(looping, STRICT).setting.strength == 5


SURE, UNSURE = (0.1, 0.9), (-0.1, 0.9)


@pytest.mark.parametrize(
    ("effect", "gains", "loops", "verdict"),
    [
        (0.8, [SURE, SURE, SURE, SURE], 0.0, "steers"),
        (0.8, [SURE, SURE, SURE, SURE], 0.3, "steers, but loops"),
        (0.1, [SURE, UNSURE, SURE, UNSURE], 0.0, "steers weakly"),
        (0.0, [UNSURE, SURE, UNSURE, SURE], 0.0, "steers weakly"),
        (0.0, [UNSURE, UNSURE, UNSURE, UNSURE], 0.0, "no effect"),
        (0.8, [SURE, SURE, UNSURE, UNSURE], 0.0, "no effect"),
        (0.8, [SURE, SURE, UNSURE, SURE], 0.0, "steers weakly"),
    ],
)
def test_a_verdict_says_what_the_intervals_say(effect, gains, loops, verdict):
    checks = [Check(name="fluent", passed=loops <= 0.1, said="")]
    assert judge(Gains(effect, *gains), checks) == verdict


def answered(texts, style):
    return Answered(figures=score(texts, style), answers="answers/0.json")


def measured_parts(style, n, *, steered, random, unsteered="plain"):
    """Parts of an evaluation in which each state of the model always says the same."""
    texts = {"unsteered": unsteered, "prompted": steered, "steered": steered}
    states = {part: answered([text] * n, style) for part, text in texts.items()}
    states |= {part: answered([random] * len(range(0, n, 2)), style) for part in ("random", "negated")}
    cells = (tried(score([steered], style), Cell(2.0)),)
    return PartsDone(states, cells, Capability(n=1, unsteered=1.0, steered=1.0))


def spec_of(n):
    return SPEC.model_copy(update={"questions": tuple(f"Question {at}?" for at in range(n)), "max_loops": 0.1})


def test_a_vector_that_does_no_more_than_a_random_one_has_no_effect():
    style = make_style(markers=("arr",), min_markers=1)
    luck = conclude(style, spec_of(30), measured_parts(style, 30, steered="arr", random="arr"), {})
    assert luck.verdict == "no effect"
    assert "random vector" in luck.advice
    assert conclude(style, spec_of(30), measured_parts(style, 30, steered="arr", random="no"), {}).verdict == "steers"


def test_two_questions_are_too_few_for_a_verdict_of_steering():
    style = make_style(markers=("arr",), min_markers=1)
    found = conclude(style, spec_of(2), measured_parts(style, 2, steered="arr", random="no"), {})
    assert not found.verdict.startswith("steers")
    assert found.interval[0] < 0 < found.interval[1] < 1.0001


def test_a_style_without_markers_is_not_measured_and_recommends_nothing(target):
    style = make_style(markers=())
    found = conclude(style, spec_of(30), measured_parts(style, 30, steered="arr", random="no"), {})
    assert found.verdict == "not measured"
    assert "markers" in found.advice
    before = replace(make_vector(target), metadata={"recommended_strength": 3.0, "description": "kept"})
    known = add_evaluation(before, found).metadata
    assert known["verdict"] == "not measured"
    assert known["effect"] is None
    assert known["description"] == "kept"
    assert not [key for key in known if key.startswith("recommended")]
    learned = add_evaluation(replace(before, extraction_config={"learning": {"rounds": 6}}), found)
    assert Recommendation.read(learned.metadata) == AS_LEARNED, "without its keys it would be another vector"


def test_the_interval_of_a_share_of_none_or_all_keeps_its_width():
    style = make_style(markers=("arr",), min_markers=1)
    low, high = score(["plain"] * 30, style).interval
    assert low == 0
    assert 0.1 < high < 0.13  # Wilson's for 0 of 30
    low, high = score(["arr"] * 2, style).interval
    assert low < 0.5
    assert high == 1


def test_a_weak_vector_is_to_be_added_more_strongly_unless_its_answers_loop_already():
    weakly = Gains(0.1, SURE, SURE, SURE, SURE)
    stronger, weaker = (advise("steers weakly", weakly, loops=loops, prompted=1.0) for loops in (False, True))
    assert judge(weakly, []) == "steers weakly"
    assert "higher strengths" in stronger
    assert "lower strengths" in weaker
    assert "higher strengths" not in weaker


def test_choosing_and_measuring_use_different_questions():
    spec = plan_evaluation(Settings())
    assert len(spec.questions) == 30
    assert not set(spec.questions) & set(spec.choice_questions)
    assert set(spec.probe_questions) <= set(spec.choice_questions)


def test_each_styles_markers_are_counted_on_the_same_answers():
    styles = {name: load_style(name) for name in ("step_by_step_reasoning", "creative_explorer")}
    answers = ["Step 1: a.\nStep 2: b.", "Imagine a lamp, like a star."]
    assert specificity_of(answers, styles) == {"step_by_step_reasoning": 0.5, "creative_explorer": 0.5}


# ---- as steps of a run


@pytest.fixture
def run(target_folder, tmp_path, store):
    """A run of one style on the tiny model, made up to its vector."""
    ledger, settings = make_run(target_folder, tmp_path, store, ["step_by_step_reasoning"])
    return ledger, settings.styles[0], settings


def test_a_style_is_done_only_after_its_evaluation(run):
    ledger, style, settings = run
    assert progress_of(ledger.of(style)).state == "evaluating"
    do_evaluation(ledger, style, settings)
    assert progress_of(ledger.of(style)).evaluated == progress_of(ledger.of(style)).parts
    conclude_step(ledger.of(style))
    assert progress_of(ledger.of(style)).state == "done"
    vector = SteeringVector.from_bytes(ledger.store.read(ledger.of(style).vector_key), "x.pt")
    assert vector.metadata["verdict"]
    assert vector.metadata["evaluation"]["capability"]["n"] == 12


def test_an_evaluation_that_runs_twice_gives_the_same_bytes(run):
    ledger, style, settings = run
    contents = []
    for _ in range(2):
        do_evaluation(ledger, style, settings)
        ledger.of(style).reopen()
        conclude_step(ledger.of(style))
        contents.append(ledger.store.read(ledger.of(style).vector_key))
        for name in ledger.store.names(f"{ledger.run_id}/{style}"):
            if name.startswith("evaluated-"):
                ledger.store.delete(f"{ledger.run_id}/{style}/{name}")
        ledger = Ledger(ledger.store, ledger.run_id)
    assert contents[0] == contents[1]


def test_a_verdict_waits_for_every_part(run):
    ledger, style, settings = run
    evaluate_step(ledger.of(style), 0, settings)
    with pytest.raises(StoreError, match="missing"):
        conclude_step(ledger.of(style))
    assert ledger.of(style).result is None


def test_a_failed_evaluation_does_not_lose_the_vector(run):
    ledger, style, _ = run
    before = ledger.store.read(ledger.of(style).vector_key)
    give_up_evaluation(ledger.of(style), "the gpu is gone")
    assert progress_of(ledger.of(style)).state == "done"
    assert "the gpu is gone" in progress_of(ledger.of(style)).message
    assert ledger.store.read(ledger.of(style).vector_key) == before


@pytest.fixture
def evaluated_here(target_folder, tmp_path, svf):
    """What 'svf generate' said of a small run that it also evaluated, and where its report lies."""
    settings = {
        "target_model": str(target_folder),
        "device": "cpu",
        "load_in_8bit": False,
        "styles": ["step_by_step_reasoning"],
        "extraction_config": {"target_layers": "all", "recipe": "response_last"},
        "evaluation": SWEEP.model_dump(),
        **MEANS,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    said = svf("generate", "--config", "tiny.yaml", "--output", "out", "--limit", 6)
    assert said.status == 0, said.err + said.out
    (page,) = (tmp_path / "out" / "runs").glob("*/report.html")
    assert f"report: {page}" in said.out.splitlines()
    return said, page


@pytest.mark.slow
def test_a_run_through_the_queue_ends_with_the_verdict_of_the_steps_done_here(evaluated_here, tmp_path, run):
    said, _ = evaluated_here
    queued = SteeringVector.load(tmp_path / "out" / "steering_vectors" / "step_by_step_reasoning.pt")
    ledger, style, settings = run
    do_evaluation(ledger, style, settings)
    conclude_step(ledger.of(style))
    here = SteeringVector.from_bytes(ledger.store.read(ledger.of(style).vector_key), "x.pt")
    assert queued == here
    assert queued.metadata["evaluation"] == here.metadata["evaluation"]
    assert queued.metadata["verdict"] in said.out


@pytest.mark.slow
def test_a_run_that_goes_on_here_ends_with_its_report_too(evaluated_here, svf):
    first, page = evaluated_here
    page.unlink()
    said = svf("resume", "--here", "--config", "tiny.yaml", "--output", "out")
    assert said.status == 0, said.err + said.out
    assert page.exists()
    paths = [line for line in first.out.splitlines() if " pairs -> out/steering_vectors" in line]
    assert paths == [line for line in said.out.splitlines() if " pairs -> out/steering_vectors" in line]
    assert len(paths) == 1
