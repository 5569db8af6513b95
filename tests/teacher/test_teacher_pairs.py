"""From answers to pairs: gates, one regeneration, the judge, and the bill."""

from __future__ import annotations

import json

import httpx2
import pytest

from factory.errors import TeacherBusy
from factory.evaluation.figures import JudgedAnswers
from factory.evaluation.judged import AnswerJudge
from factory.teacher.judge import as_judge
from factory.teacher.replies import Payer, stored_reply
from factory.teacher.writing import draw_bill, write_batch, write_pair
from tests.endpoint import answer_to
from tests.scripted import LOCAL, STYLE, Scripted, said, teacher_at


def test_a_pair_carries_its_checks_and_where_it_came_from(store):
    pair = write_pair(teacher_at(Scripted(), store), STYLE, "Why is the sky blue?", 3)
    assert pair.batch == 3
    assert pair.extra["checks"]["positive"]["markers"] == 4
    for side in ("positive", "negative"):
        source = pair.extra["provenance"][side]
        assert (source["model_requested"], source["model_resolved"], source["model_returned"]) == (
            "gpt-4",
            "gpt-6-luna",
            "teacher",
        )
        assert source["usage"] == {"input": 100, "output": 60}
        assert source["cost_usd"] == pytest.approx(100e-6 + 240e-6)
        assert source["parameters"]["seed"] == 0
        assert source["cache_hit"] is False
        assert stored_reply(store, source["request_key"]).text


def test_one_bad_answer_costs_one_regeneration(store):
    server = Scripted(said("cut", finish_reason="length"), said(answer_to("a step")), said("A plain answer it is."))
    pair = write_pair(teacher_at(server, store), STYLE, "Why?", 0)
    assert [body["seed"] for body in server.bodies] == [0, 1000, 0]
    assert pair.extra["provenance"]["positive"]["parameters"]["seed"] == 1000


def test_two_bad_answers_reject_the_pair_with_reasons_and_text(store):
    server = Scripted(said("I'm sorry, but I cannot do that."))
    made = write_batch(teacher_at(server, store), STYLE, ["Why?"], max_concurrent=1)
    assert made.pairs == []
    assert made.reasons == {"refusal": 1}
    assert made.rejected[0].question == "Why?"
    assert made.rejected[0].evidence["reasons"] == ["refusal", "no_markers"]
    assert made.rejected[0].evidence["response"].startswith("I'm sorry")
    assert len(server.bodies) == 2


def test_a_bad_request_fails_its_pair_alone(store):
    class Picky(Scripted):
        def answer(self, request):
            if "Why" in request.content.decode():
                return httpx2.Response(400, json={"error": {"message": "no"}})
            return super().answer(request)

    made = write_batch(teacher_at(Picky(), store), STYLE, ["Why?", "How?"], max_concurrent=2)
    assert [pair.question for pair in made.pairs] == ["How?"]
    assert made.reasons == {"bad_request": 1}


def test_what_arrived_is_kept_when_another_call_fails(store):
    class Flaky(Scripted):
        def answer(self, request):
            if "Why" in request.content.decode():
                return httpx2.Response(503)
            return super().answer(request)

    with pytest.raises(TeacherBusy):
        write_batch(teacher_at(Flaky(), store), STYLE, ["Why?", "How?"], max_concurrent=2)
    healthy = Scripted()
    made = write_batch(teacher_at(healthy, store), STYLE, ["Why?", "How?"], max_concurrent=2)
    assert len(made.pairs) == 2
    assert all("Why" in body["messages"][0]["content"] for body in healthy.bodies)


def test_the_bill_says_who_paid(store):
    teacher = teacher_at(Scripted(), store)
    write_batch(teacher, STYLE, ["Why?", "How?"], max_concurrent=2)
    ours = draw_bill(store, LOCAL, STYLE, ["Why?", "How?"], teacher.payer)
    later = draw_bill(store, LOCAL, STYLE, ["Why?", "How?"], Payer("another run", "steps", 0))
    assert (ours.paid_calls, ours.cached_calls) == (4, 0)
    assert (ours.paid_tokens, later.paid_tokens) == ({"input": 400, "output": 240}, {"input": 0, "output": 0})
    assert ours.spent_usd == pytest.approx(4 * 340e-6)
    assert (later.paid_calls, later.cached_calls, later.spent_usd) == (0, 4, 0.0)
    assert later.saved_usd == pytest.approx(ours.spent_usd)


def test_a_judge_rejects_what_is_not_in_the_style(store):
    judged = LOCAL.model_copy(update={"judge_model": "judge"})

    class Court(Scripted):
        def answer(self, request):
            if json.loads(request.content)["model"] == "judge":
                self.bodies.append({})
                in_style = "Step 1" in json.loads(request.content)["messages"][0]["content"]
                return said(f"style: {90 if in_style else self.plain}\ncoherence: 80")
            return super().answer(request)

    for plain, reasons in ((5, {}), (60, {"judge_negative_style": 1})):
        court = Court()
        court.plain = plain
        spec = judged.model_copy(update={"seed": plain})
        made = write_batch(teacher_at(court, store, spec), STYLE, ["Why?"], max_concurrent=1)
        assert made.reasons == reasons
        assert len(court.bodies) == 4
        assert draw_bill(store, spec, STYLE, ["Why?"], Payer("run", "steps", 0)).paid_calls == 4
    assert not made.pairs


class Bench(Scripted):
    """A teacher that writes, and a judge that says one thing for ever."""

    def __init__(self, verdict: httpx2.Response) -> None:
        super().__init__()
        self.verdict = verdict

    def answer(self, request):
        body = json.loads(request.content)
        if body["model"] == "judge":
            self.bodies.append(body)
            return self.verdict
        return super().answer(request)


@pytest.mark.parametrize(
    ("verdict", "unreadable"),
    [
        (said("I like both of them."), "I like both of them."),
        (said("style: 400\ncoherence: 4"), "style: 400\ncoherence: 4"),
        (said("style: 9", finish_reason="length"), "length"),
        (httpx2.Response(400, json={"error": {"message": "too long"}}), "bad_request"),
    ],
)
def test_a_verdict_without_scores_fails_nobody_and_is_written_down(store, verdict, unreadable):
    bench = Bench(verdict)
    spec = LOCAL.model_copy(update={"judge_model": "judge"})
    made = write_batch(teacher_at(bench, store, spec), STYLE, ["Why?"], max_concurrent=1)
    assert made.rejected == []
    assert made.pairs[0].extra["checks"]["judge"] == {
        side: {"unreadable": unreadable} for side in ("positive", "negative")
    }


def test_a_judge_is_asked_for_its_likeliest_scores_and_named_in_the_provenance(store):
    bench = Bench(said("style: 50\ncoherence: 80"))
    spec = LOCAL.model_copy(update={"judge_model": "judge"})
    teacher = teacher_at(bench, store, spec)
    found = AnswerJudge(as_judge(teacher, "judge"), STYLE, 2).score(["Why?", "How?"], ["Because.", " "])
    assert found == (
        JudgedAnswers(model="judge", style=50.0, coherence=80.0, n=1, unreadable=1, styles=(50, None)),
        pytest.approx(340e-6),
    )
    assert [body["temperature"] for body in bench.bodies] == [0.0]
    bench.verdict = said("style: 90\ncoherence: 80")  # a judge who sees the style in everything
    made = write_batch(teacher, STYLE, ["Why?"], max_concurrent=1)
    assert made.reasons == {"judge_negative_style": 1}
    bench.verdict = said("nothing")
    pair = write_pair(teacher, STYLE, "How so?", 0)
    assert [source["model_resolved"] for source in pair.extra["provenance"]["judge"]] == ["judge", "judge"]
