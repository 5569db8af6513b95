"""What a run will take, before it starts and without a network."""

from __future__ import annotations

import json

import pytest

from factory.config import ExtractionSettings, Settings, describe_limits, load_configuration
from factory.errors import ConfigError
from factory.evaluation.judged import count_judged
from factory.extraction.extract import render_batch
from factory.extraction.prefix import share_prefixes
from factory.extraction.recipe import Recipe
from factory.pairs.styles import load_style
from factory.planning.estimate import estimate_run
from factory.planning.plan import plan_run
from factory.planning.reading_time import count_parameters, tokens_a_pair, usual_lengths
from factory.planning.specify import plan_evaluation, plan_extraction, plan_teacher
from factory.run.asking import tighter
from factory.steps.learn import learn_part_step, missing_places
from factory.teacher.judge import judge_prompt, judge_spec
from factory.teacher.request import build_request, request_key
from factory.teacher.spending import likely_tokens
from tests.conftest import MEANS
from tests.evaluated import make_run

NEW = {"regenerate_datasets": True, "styles": ["step_by_step_reasoning"]}


def kept(text):
    return {"bad": None, "text": text, "paid_by": {"run": "run", "style": "steps", "batch": 0}}


def test_an_existing_dataset_costs_nothing(store, tmp_path):
    found = estimate_run(Settings(), store, tmp_path)
    assert [(part.to_write, part.calls, part.usd_high) for part in found.styles] == [(0, 0, 0)] * 3
    assert found.usd == (0, 0)


def test_low_is_below_high_and_both_grow_with_the_pairs(store, tmp_path):
    few, many = (estimate_run(Settings(**NEW), store, tmp_path, limit=n) for n in (5, 20))
    assert few.styles[0].calls == 10
    assert many.styles[0].calls == 40
    assert 0 < few.usd[0] < few.usd[1] < many.usd[1]
    assert few.teacher_model == "gpt-6-luna"
    assert few.minutes_by_rate == pytest.approx(10 / 60, abs=0.1)


def test_calls_that_the_store_has_answers_to_are_subtracted(store, tmp_path):
    settings = Settings(**NEW)
    before = estimate_run(settings, store, tmp_path, limit=3)
    spec, style = plan_teacher(settings), load_style("step_by_step_reasoning")
    question = "How does photosynthesis work?"
    for prompt, text in zip(style.prompts_for(question), ("Step 1: See.\nStep 2: Go.", "It is so."), strict=True):
        store.write_json(f"replies/{request_key(spec, build_request(spec, prompt))}.json", kept(text))
    after = estimate_run(settings, store, tmp_path, limit=3)
    assert (before.styles[0].calls, after.styles[0].calls, after.styles[0].cached_calls) == (6, 4, 2)
    assert after.usd[1] < before.usd[1]


def test_a_judge_s_calls_are_counted_and_an_unknown_price_is_said_to_be_unknown(store, tmp_path):
    judged = estimate_run(Settings(**NEW, judge_model="gpt-6.1-sol"), store, tmp_path, limit=5)
    assert judged.styles[0].calls == 20
    unknown = estimate_run(Settings(**NEW, teacher_model="gpt-of-tomorrow"), store, tmp_path, limit=5)
    assert unknown.usd is None
    local = estimate_run(Settings(**NEW, base_url="http://127.0.0.1:1/v1"), store, tmp_path, limit=5)
    assert local.usd == (0, 0)
    assert local.minutes_by_rate is None


def test_svf_estimate_needs_neither_key_nor_network(svf, tmp_path):
    said = svf("estimate", "--json", "--limit", 4, "-s", "creative_explorer", FACTORY_REGENERATE_DATASETS="true")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["requested_model"] == "gpt-4"
    assert found["styles"][0]["calls"] == 8
    assert 0 < found["usd_low"] < found["usd_high"]
    assert not list(tmp_path.iterdir())


def test_a_budget_with_an_unknown_price_refuses_to_start_and_writes_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    unknown = NEW | {"teacher_model": "gpt-of-tomorrow", "max_cost_usd": 1.0}
    with pytest.raises(ConfigError, match=r"gpt-of-tomorrow.*pricing"):
        plan_run(Settings(**unknown), store, tmp_path)
    assert store.names() == []
    priced = plan_run(Settings(**unknown, pricing={"input": 1.0, "output": 2.0}), store, tmp_path)
    assert priced.spec.teacher.pricing == {"input": 1.0, "output": 2.0}


def test_a_retired_model_is_replaced_aloud_or_refused(store, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    plan = plan_run(Settings(**NEW), store, tmp_path)
    assert (plan.spec.teacher.requested_model, plan.spec.teacher.model) == ("gpt-4", "gpt-6-luna")
    assert "gpt-6-luna" in plan.warnings[0]
    local = plan_run(Settings(**NEW, base_url="http://127.0.0.1:1/v1"), store, tmp_path)
    assert (local.spec.teacher.model, local.warnings) == ("gpt-4", [])
    with pytest.raises(ConfigError, match="retired"):
        plan_run(Settings(**NEW, strict_model=True), store, tmp_path)


def test_a_retired_judge_is_replaced_or_refused_like_a_teacher(store, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    judged = Settings(**NEW, judge_model="gpt-4", evaluation={"judge_model": "gpt-3.5-turbo"})
    spec = plan_run(judged, store, tmp_path).spec
    assert (spec.teacher.judge_model, spec.evaluation.judge_model) == ("gpt-6-luna", "gpt-6-luna")
    local = judged.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    assert plan_run(local, store, tmp_path).spec.teacher.judge_model == "gpt-4"
    with pytest.raises(ConfigError, match="judge_model 'gpt-4' is retired"):
        plan_run(Settings(**NEW, teacher_model="gpt-6-luna", judge_model="gpt-4", strict_model=True), store, tmp_path)


def test_extending_keeps_the_batches_there_are_and_adds_new_ones(store, tmp_path):
    own = Settings(
        styles=["step_by_step_reasoning"], base_url="http://127.0.0.1:1/v1", additional_questions=["Why do cats purr?"]
    )
    before = plan_run(own.model_copy(update={"additional_questions": []}), store, tmp_path).batches[
        "step_by_step_reasoning"
    ]
    after = plan_run(own.model_copy(update={"extend": True}), store, tmp_path).batches["step_by_step_reasoning"]
    assert after[: len(before)] == before
    added = [question for batch in after[len(before) :] for question in batch.questions]
    assert "Why do cats purr?" in added
    assert len(set(added)) == len(added)


def test_a_server_of_one_s_own_has_no_pause_between_calls_unless_one_is_set():
    assert Settings().calls_per_minute == 60
    assert Settings(base_url="http://127.0.0.1:1/v1").calls_per_minute is None
    assert Settings(base_url="http://127.0.0.1:1/v1", api_delay=2.0).calls_per_minute == 30
    assert Settings(base_url="http://127.0.0.1:1/v1", requests_per_minute=7).calls_per_minute == 7


# ---- the time of the target model


def test_without_measured_runs_the_time_is_computed_for_a_slow_and_a_fast_device(store, tmp_path):
    found = estimate_run(Settings(styles=NEW["styles"], device="cuda"), store, tmp_path).reading
    assert 0 < found.low < found.high
    assert "computed, not measured" in found.basis
    assert "7 billion parameters (all of them, by its name)" in found.basis
    slower = estimate_run(Settings(styles=NEW["styles"], device="cpu"), store, tmp_path).reading
    assert slower.low > found.high
    unknown = estimate_run(Settings(styles=NEW["styles"], target_model="a/model"), store, tmp_path).reading
    assert (unknown.low, unknown.high) == (None, None)


@pytest.mark.parametrize(("layers", "share"), [("all", 1.0), ("0-1", 0.5)])
def test_the_parameters_counted_are_those_of_the_layers_that_are_read(target, target_folder, layers, share):
    spec = plan_extraction(Settings(target_model=str(target_folder), extraction_config={"target_layers": layers}))
    naive = sum(p.numel() for p in target.model.base_model.layers.parameters() if p.dim() == 2)
    assert count_parameters(spec)[0] == pytest.approx(share * naive)


def test_runs_of_the_same_kind_in_the_store_say_how_long_it_takes(target_folder, tmp_path, store):
    ledger, settings = make_run(target_folder, tmp_path, store, NEW["styles"])
    seconds = ledger.of(NEW["styles"][0]).extracted(0).seconds
    found = estimate_run(settings, store, tmp_path, limit=12).reading
    assert found.basis == (
        "measured: 1 batches in this store with the same model, layers and recipe; they are few, so half and twice that"
    )
    assert (found.low, found.high) == pytest.approx((seconds, 4 * seconds))
    other = settings.model_copy(update={"extraction_config": ExtractionSettings(target_layers="0-1")})
    assert "computed" in estimate_run(other, store, tmp_path, limit=12).reading.basis


def test_learning_is_computed_until_rounds_in_the_store_say_how_long_they_take(target_folder, tmp_path, store):
    assert estimate_run(Settings(styles=NEW["styles"], **MEANS), store, tmp_path).learning is None
    learning = {"learning": {"rounds": 3, "pairs_per_round": 4, "pairs_per_part": 2, "response_tokens": 6}}
    ledger, settings = make_run(target_folder, tmp_path, store, NEW["styles"], learning)
    computed = estimate_run(settings, store, tmp_path, limit=6).learning
    assert "computed, not measured" in computed.basis
    page = ledger.of(NEW["styles"][0])
    places = missing_places(page, 0)
    for place in places:
        learn_part_step(page, place, settings)
    rates = sorted(page.gradient(place).seconds / page.gradient(place).n_pairs for place in places)
    # of six pairs one validates: 3 rounds with 4 pairs, and validations before the first and after the last
    found = estimate_run(settings, store, tmp_path, limit=6).learning
    assert found.basis.startswith("measured: 3 parts of rounds")
    assert (found.low, found.high) == pytest.approx((14 * rates[0] / 2, 14 * rates[-1] * 2))


def test_the_tokens_that_are_expected_are_about_those_that_are_read(starter_pairs, target):
    batch = starter_pairs[:16]
    for recipe in (Recipe("fewshot"), Recipe("response_mean", n_tokens=4), Recipe("response_last")):
        rendered = render_batch(batch, target, recipe)
        texts = [ids for r in rendered.renderings for ids in (r.positive_ids, r.negative_ids)]
        first = [at[0] for r in rendered.renderings for at in (r.positive_positions, r.negative_positions)]
        read = sum(len(segment.ids) for segment in share_prefixes(texts, first))
        per_word = len(target.text_ids(batch[0].positive_response)) / likely_tokens(batch[0].positive_response)
        spec = plan_extraction(Settings(extraction_config={"recipe": recipe.name, "n_tokens": recipe.n_tokens}))
        lengths = [per_word * length for length in usual_lengths(batch, 0.0)]
        assert tokens_a_pair(spec, *lengths) == pytest.approx(read / len(batch), rel=0.5)


# ---- what is stored, and what comes on top


def test_a_stored_answer_that_fails_its_gates_will_be_asked_once_more(store, tmp_path):
    settings = Settings(**NEW, judge_model="gpt-6.1-sol")
    spec, style = plan_teacher(settings), load_style("step_by_step_reasoning")
    prompt = style.prompts_for("How does photosynthesis work?")[0]

    def keep(attempt, text):
        key = request_key(spec, build_request(spec, prompt, attempt))
        store.write_json(f"replies/{key}.json", kept(text))

    def counts():
        (part,) = estimate_run(settings, store, tmp_path, limit=1).styles
        return part.calls, part.cached_calls

    assert counts() == (4, 0)
    keep(0, "I cannot answer that.")
    assert counts() == (4, 1)
    good = "Step 1: Light meets a leaf.\nStep 2: Water is split.\nStep 3: Sugar is made of air."
    keep(1, good)
    assert counts() == (3, 2)
    judge = judge_spec(spec, spec.judge_model)
    asked = build_request(judge, judge_prompt(style, "How does photosynthesis work?", good))
    store.write_json(f"replies/{request_key(judge, asked)}.json", kept("style: 90\ncoherence: 90"))
    assert counts() == (2, 3)


def test_a_judge_of_the_evaluation_is_part_of_the_estimate(store, tmp_path):
    settings = Settings(styles=NEW["styles"], evaluation={"judge_model": "gpt-6-luna"})
    found = estimate_run(settings, store, tmp_path)
    spec = plan_evaluation(settings)
    assert found.styles[0].calls == count_judged(spec) + 2 * len(spec.questions)
    assert count_judged(spec) > 100
    assert 0 < found.usd[0] < found.usd[1]


# ---- the limits in force


def test_the_limits_in_force_are_named_with_their_source(tmp_path):
    def line(text="", **environment):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return describe_limits(load_configuration(file, environment=environment))

    assert line() == "teacher calls: one per 1 s (api_delay, default), 16 at a time per worker"
    assert "30 per minute (requests_per_minute of variable FACTORY_REQUESTS_PER_MINUTE)" in line(
        FACTORY_REQUESTS_PER_MINUTE="30"
    )
    local = "base_url: http://127.0.0.1:1/v1\n"
    assert line(local) == "teacher calls: 16 at a time per worker"
    assert f"one per 1 s (api_delay of {tmp_path / 'config.yaml'})" in line(local + "api_delay: 1.0\n")
    assert line(local + "api_delay: 1.0\n").endswith("remove it, or set it to null")
    assert "5000 tokens per minute" in line(local + "tokens_per_minute: 5000\n")


def test_a_run_s_limits_go_with_it_and_a_worker_s_own_may_only_tighten_them():
    assert plan_teacher(Settings(requests_per_minute=30)).calls_per_minute == 30
    assert Settings().own_calls_per_minute is None
    assert Settings(api_delay=2.0).own_calls_per_minute == 30
    assert tighter(120, Settings(api_delay=2.0).own_calls_per_minute) == 30
    assert tighter(20, Settings(api_delay=2.0).own_calls_per_minute) == 20
    assert tighter(None, None) is None
