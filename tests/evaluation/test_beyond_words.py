"""Measures that a marker count cannot make: relevance, repetition across answers, thoughts told from answers."""

import math
from types import SimpleNamespace

import pytest
import torch

from factory import load_target
from factory.evaluation.answers import Questioning, ask, losses
from factory.evaluation.examiner import Examiner
from factory.evaluation.parts import PartsDone
from factory.evaluation.phases import PhaseBudgets, opens_thought
from factory.evaluation.relevance import relevance, surprises_of
from factory.evaluation.repetition import repeated_sentences, stock_phrases
from factory.evaluation.spec import EvaluationSpec
from factory.evaluation.thought import Answer, split_thought
from factory.evaluation.verdict import specificity_of
from factory.learning.learn import zero_vector
from factory.pairs.styles import load_style
from factory.store import Store
from tests.conftest import CHAT_TEMPLATE, save_tiny_model

QUESTIONS = ["Why is the sky blue?", "How do I bake bread?", "What is a prime number?"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_target(str(save_tiny_model(folder, QUESTIONS * 20)), device="cpu")


def naive_loss(target, question, answer):
    """One text at a time, all logits, no padding."""
    prompt = [*target.prompt_ids([{"role": "user", "content": question}]), target.neutral_id]
    said = target.text_ids(answer)
    with torch.inference_mode():
        logits = target.model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
    return -sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(said)) / len(said)


def test_losses_of_a_batch_are_those_of_each_text_alone(target):
    answers = ["Because of light.", "", "It has no divisors at all but one and itself."]
    found = losses(target, QUESTIONS, answers)
    assert found[1] is None
    for at in (0, 2):
        assert found[at] == pytest.approx(naive_loss(target, QUESTIONS[at], answers[at]), rel=1e-4)


def test_relevance_is_the_loss_after_other_questions_less_that_after_the_own(target):
    answers = ["Because of light.", "With flour and water.", "Only itself divides it."]
    found = relevance(target, QUESTIONS, answers)
    for at, (answer, value) in enumerate(zip(answers, found, strict=True)):
        own = naive_loss(target, QUESTIONS[at], answer)
        others = [naive_loss(target, QUESTIONS[(at + shift) % 3], answer) for shift in (1, 2)]
        assert value == pytest.approx(sum(others) / 2 - own, abs=1e-3)


def test_an_empty_answer_has_no_relevance(target):
    assert relevance(target, QUESTIONS, ["Yes.", "", "No."])[1] is None


def test_relevance_of_one_question_is_refused(target):
    with pytest.raises(ValueError, match="two questions"):
        relevance(target, QUESTIONS[:1], ["Yes."])


def test_a_sentence_said_everywhere_is_caught():
    stock = "The evidence for this has clear limitations."
    answers = [f"{stock} {fact}" for fact in ("Bread needs flour and water.", "Light scatters in the air.", "Yes.")]
    assert repeated_sentences(answers) == pytest.approx(3 / 5)
    assert stock_phrases(answers) > 0.3
    assert repeated_sentences(["Bread needs flour and water.", "Light scatters in the air."]) == 0
    assert stock_phrases([]) == repeated_sentences([]) == 0


def test_numbered_headings_that_many_answers_share_are_no_repetition():
    answers = [f"Step 1: {one}\nStep 2: {two}" for one, two in (("Mix it", "Wait"), ("Look up", "Think"))]
    assert repeated_sentences(answers) == 0


def test_a_thought_is_told_from_the_answer_behind_it():
    assert split_thought("<think>\nhm 4? no, 5\n</think>\n\nFive.") == Answer("Five.", "hm 4? no, 5")
    assert split_thought("<think>\nhm 4? no") == Answer("", "hm 4? no", cut=True)
    assert split_thought("Five.") == Answer("Five.")
    assert split_thought("so 5</think>Five.") == Answer("Five.", "so 5")


class Tokens:
    """A tokenizer of whole numbers, in which 7, 8 close a thought."""

    def encode(self, text, add_special_tokens):
        return [7, 8]


def test_an_answer_has_its_own_budget_however_long_its_thought_was():
    budgets = PhaseBudgets(SimpleNamespace(tokenizer=Tokens()), thought_tokens=5, answer_tokens=3)
    prompt = [1, 1]
    long = [2, 2, 2, 7, 8, 3, 3, 3]
    short = [7, 8, 3, 3, 3, 3, 3, 3]
    never = [2, 2, 2, 2, 2, 2, 2, 2]
    ended = {}
    for n in range(1, 9):
        rows = torch.tensor([prompt + row[:n] for row in (long, short, never)])
        for row, over in zip(("long", "short", "never"), budgets(rows, None).tolist(), strict=True):
            if over:
                ended.setdefault(row, n)
    assert ended == {"long": 8, "short": 5, "never": 5}


def thinking_target(folder):
    target = load_target(str(save_tiny_model(folder, [*QUESTIONS, "<think>", "</think>"] * 20)), device="cpu")
    target.tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    return target


def test_a_model_whose_prompt_opens_a_thought_is_judged_behind_it(tmp_path):
    target = thinking_target(tmp_path)
    assert opens_thought(target)
    said = ask(target, Questioning(tuple(QUESTIONS), 6, thought_tokens=10), Store("memory://thinking"))
    assert all(text.startswith("<think>") for text in said)
    assert [split_thought(text).cut for text in said] == [True] * 3, "random weights never close a thought"
    bounded = ask(target, Questioning(tuple(QUESTIONS), 10), Store("memory://bounded"))
    assert said == [f"<think>\n{thought}" for thought in bounded], "a thought that never ends is cut at its own limit"


def test_an_evaluation_judges_behind_the_thought_and_counts_thoughts_that_never_ended(tmp_path):
    spec = EvaluationSpec(
        questions=tuple(QUESTIONS),
        choice_questions=(),
        probe_questions=(),
        strengths=(1.0,),
        positions=(1,),
        layer_sets=("all",),
        max_new_tokens=4,
        thinking_tokens=9,
    )
    target, store = thinking_target(tmp_path), Store("memory://thoughts")
    nothing = zero_vector(target, "step_by_step_reasoning", "all")
    style = load_style("step_by_step_reasoning")
    examined = Examiner(target, nothing, style, spec, store).examine("unsteered", PartsDone())
    assert (examined.figures.thoughts_cut, examined.figures.words, examined.figures.markers) == (3, 0, 0)
    said = store.require_json(examined.answers)
    bounded = ask(target, Questioning(tuple(QUESTIONS), 9), store)
    assert said == [f"<think>\n{thought}" for thought in bounded], "a thought has the tokens that the settings give it"
    assert specificity_of(said, {style.name: style}) == {style.name: 0.0}
    unbounded = spec.model_copy(update={"thinking_tokens": 0})
    plain = Examiner(target, nothing, style, unbounded, store).examine("unsteered", PartsDone())
    assert "thoughts_cut" not in plain.to_json()["figures"], "a run of an older version is judged as it was"


def test_a_model_that_does_not_think_is_asked_as_ever(target):
    assert not opens_thought(target)
    plain = ask(target, Questioning(tuple(QUESTIONS), 6), Store("memory://plain"))
    assert plain == ask(target, Questioning(tuple(QUESTIONS), 6, thought_tokens=10), Store("memory://plain2"))


def test_perplexity_is_the_exponential_of_the_loss(target):
    (found,) = surprises_of(target, QUESTIONS[:1], ["Because of light."])
    assert found.relevance is None, "there is no other question"
    assert found.perplexity == pytest.approx(math.exp(naive_loss(target, QUESTIONS[0], "Because of light.")), rel=1e-3)
