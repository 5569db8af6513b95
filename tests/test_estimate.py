"""What a run will take, before it starts and without a network."""

from __future__ import annotations

import json

import pytest

from factory.config import Settings
from factory.errors import ConfigError
from factory.estimate import estimate_run
from factory.plan import plan_run, plan_teacher
from factory.styles import load_style
from factory.teacher import build_request, request_key

NEW = {"regenerate_datasets": True, "styles": ["step_by_step_reasoning"]}


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
    for prompt in style.prompts_for(question):
        store.write_json(f"replies/{request_key(spec, build_request(spec, prompt))}.json", {"bad": None, "text": "x"})
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
    before = plan_run(own, store, tmp_path).batches["step_by_step_reasoning"]
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
