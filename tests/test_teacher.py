"""One call of the teacher: what is asked, how each kind of answer is taken, and what is kept."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import BadReply, PairRejected, RunPaused, TeacherBusy, TeacherRefused
from factory.judge import as_judge, judge_answers
from factory.ledger import Ledger
from factory.limits import Pace
from factory.plan import plan_run
from factory.run import TeacherSpec
from factory.steps import write_step
from factory.store import Store
from factory.styles import parse_style
from factory.teacher import (
    LONG_WAIT,
    Payer,
    Teacher,
    build_request,
    check_model,
    find_key,
    open_client,
    request_key,
    stored_reply,
)
from factory.writing import draw_bill, write_batch, write_pair
from tests.endpoint import answer_to, completion, running_endpoint

OPENAI = TeacherSpec(model="gpt-6-luna", requested_model="gpt-4", temperature=0.7)
LOCAL = OPENAI.model_copy(update={"base_url": "http://teacher.test/v1", "pricing": {"input": 1.0, "output": 4.0}})
STYLE = parse_style(
    r"""
description: Numbered steps.
positive_prompt: "{question} Answer in numbered steps."
negative_prompt: "{question} Answer in one plain paragraph."
markers: ['^step\s+\d+']
""",
    "steps.yaml",
)


class Scripted(httpx2.MockTransport):
    """A server that gives its answers in turn, the last one for ever, and counts."""

    def __init__(self, *answers: httpx2.Response) -> None:
        super().__init__(self.answer)
        self.answers = list(answers)
        self.bodies: list[dict] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content) if request.content else {})
        if not self.answers:
            return said(answer_to(self.bodies[-1]["messages"][0]["content"]))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def said(text, **options) -> httpx2.Response:
    return httpx2.Response(200, json=completion(text, **options))


def teacher_at(transport: httpx2.MockTransport, store: Store, spec: TeacherSpec = LOCAL) -> Teacher:
    client = openai.OpenAI(
        api_key="sk-test", base_url=spec.base_url, max_retries=0, http_client=httpx2.Client(transport=transport)
    )
    return Teacher(spec, client, store, Payer("run", "steps", 0))


# ---- what is asked

FIELDS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["a", "b"]),
        "temperature": st.sampled_from([None, 0.0, 0.7]),
        "max_response_tokens": st.sampled_from([16, 800]),
        "seed": st.sampled_from([0, 1]),
        "base_url": st.sampled_from([None, "http://one/v1", "http://two/v1"]),
    }
)


@given(one=FIELDS, two=FIELDS, prompts=st.tuples(st.text(max_size=5), st.text(max_size=5)), attempt=st.integers(0, 1))
def test_two_requests_share_a_key_exactly_if_they_ask_the_same(one, two, prompts, attempt):
    specs = [TeacherSpec(requested_model="x", **fields) for fields in (one, two)]
    bodies = [build_request(spec, prompt, attempt) for spec, prompt in zip(specs, prompts, strict=True)]
    keys = [request_key(spec, body) for spec, body in zip(specs, bodies, strict=True)]
    assert (keys[0] == keys[1]) == ((bodies[0], one["base_url"]) == (bodies[1], two["base_url"]))
    assert keys[0] != request_key(specs[0], build_request(specs[0], prompts[0], attempt + 1))


def test_who_asks_and_what_it_may_cost_is_not_part_of_the_key():
    priced = LOCAL.model_copy(update={"pricing": None, "requested_model": "other"})
    assert request_key(LOCAL, build_request(LOCAL, "hello")) == request_key(priced, build_request(priced, "hello"))


def test_openai_gets_its_own_parameters_and_others_what_all_servers_know():
    at_openai, elsewhere = build_request(OPENAI, "hello"), build_request(LOCAL, "hello")
    assert at_openai["max_completion_tokens"] == 800
    assert at_openai["reasoning_effort"] == "none"
    assert "max_tokens" not in at_openai
    assert elsewhere["max_tokens"] == 800
    assert "reasoning_effort" not in elsewhere
    assert "max_completion_tokens" not in elsewhere


def test_a_model_that_reasons_gets_no_temperature():
    assert "temperature" not in build_request(OPENAI.model_copy(update={"reasoning_effort": "low"}), "hello")
    assert build_request(OPENAI, "hello")["temperature"] == 0.7


def test_the_openai_key_stays_at_openai():
    environment = {"OPENAI_API_KEY": "sk-real", "OTHER": "sk-other"}
    assert find_key(None, None, environment) == "sk-real"
    assert find_key("http://mine/v1", None, environment) == "none"
    assert find_key("http://mine/v1", "OTHER", environment) == "sk-other"
    assert find_key("http://mine/v1", "OPENAI_API_KEY", environment) == "sk-real"  # the configuration says so
    assert find_key(None, None, {}) is None


def test_a_server_of_one_s_own_is_sent_no_openai_key_by_default(store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OTHER", "sk-other")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-mine")
    with running_endpoint() as endpoint:
        spec = LOCAL.model_copy(update={"base_url": endpoint.base_url})
        for variable, key in ((None, "none"), ("OTHER", "sk-other"), ("OPENAI_API_KEY", "sk-of-openai")):
            Teacher(spec, open_client(spec, variable, 5.0), store, Payer("run", "steps", 0)).ask(f"hello {variable}")
            assert endpoint.keys == {f"Bearer {key}"}
            endpoint.keys.clear()
        assert not [name for name in endpoint.headers_seen if name.startswith("openai")]


def test_openai_s_key_goes_to_openai_whatever_address_the_environment_names(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    assert open_client(OPENAI, None, 5.0).base_url.host == "api.openai.com"


@pytest.mark.parametrize("missing", ["gpt-writes", "gpt-judges"])
def test_no_call_is_paid_where_openai_lacks_the_teacher_or_its_judge(store, tmp_path, monkeypatch, missing):
    class Catalogue(Scripted):
        def answer(self, request):
            lacks = request.url.path.endswith(missing)
            paths.append((request.method, request.url.path))
            return httpx2.Response(404 if lacks else 200, json={"error": {}} if lacks else {"id": "x"})

    paths: list[tuple[str, str]] = []
    http = httpx2.Client(transport=Catalogue())
    client = openai.OpenAI(api_key="sk-test", max_retries=0, http_client=http)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("factory.cluster.open_client", lambda *asked: client)
    settings = Settings(teacher_model="gpt-writes", judge_model="gpt-judges", regenerate_datasets=True)
    plan = plan_run(settings, store, tmp_path, limit=1)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    with pytest.raises(RunPaused) as paused:
        write_step(ledger, settings.styles[0], 0, settings, "memory://")
    assert paused.value.reason == "no_model"
    assert missing in ledger.paused()["message"]
    assert {method for method, _ in paths} == {"GET"}


# ---- how answers are taken


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (httpx2.Response(200, content=b'{"choices": [', headers={"content-type": "application/json"}), "not_json"),
        (httpx2.Response(200, content=b"<html>busy</html>", headers={"content-type": "text/html"}), "not_json"),
        (httpx2.Response(200, json={"error": {"message": "no"}}), "not_json"),
        (httpx2.Response(200, json=completion("x") | {"choices": []}), "empty"),
        (said(""), "empty"),
        (said(None), "empty"),
        (said("half a sent", finish_reason="length"), "length"),
        (said("", finish_reason="content_filter"), "content_filter"),
    ],
)
def test_a_200_with_nothing_usable_is_kept_and_never_asked_again(store, response, reason):
    server = Scripted(response)
    teacher = teacher_at(server, store)
    for _ in range(2):
        with pytest.raises(BadReply) as bad:
            teacher.ask("hello")
        assert bad.value.reason == reason
    assert len(server.bodies) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)


@given(
    body=JSON,
    part=st.sampled_from([(), ("choices",), ("choices", 0), ("choices", 0, "message"), ("usage",), ("model",)]),
)
def test_whatever_json_a_server_sends_is_kept_and_priced_and_raises_no_other_error(body, part):
    store, content = Store(f"memory://{uuid.uuid4().hex}"), completion("An answer.")
    place = content
    for name in part[:-1]:
        place = place[name]
    if part:
        place[part[-1]] = body
    teacher = teacher_at(Scripted(httpx2.Response(200, json=content if part else body)), store)
    with contextlib.suppress(BadReply):
        reply = teacher.ask("hello")
        assert reply.text == "An answer."
        assert reply.cost_usd >= 0
    (name,) = store.names("replies")
    assert store.read_json(f"replies/{name}")["cost_usd"] >= 0


def test_a_server_that_does_not_count_is_taken_at_the_worst(store):
    content = completion("word " * 20) | {"usage": {"prompt_tokens": None, "completion_tokens": 3}}
    reply = teacher_at(Scripted(httpx2.Response(200, json=content)), store).ask("hello")
    assert reply.usage == {}
    assert reply.cost_usd >= (len("hello") * 1.0 + 20 * 4.0) / 1e6


@pytest.mark.parametrize(
    ("status", "code", "headers", "kind", "detail"),
    [
        (429, "rate_limit_exceeded", {"retry-after": "7"}, TeacherBusy, 7.0),
        (429, "rate_limit_exceeded", {}, TeacherBusy, None),
        (429, "", {"retry-after": "7", "retry-after-ms": "6500"}, TeacherBusy, 6.5),
        (429, "", {"retry-after": "7", "retry-after-ms": "soon"}, TeacherBusy, 7.0),
        (408, "", {}, TeacherBusy, None),
        (409, "", {}, TeacherBusy, None),
        (500, "", {}, TeacherBusy, None),
        (503, "", {"retry-after": "nonsense"}, TeacherBusy, None),
        (429, "insufficient_quota", {"retry-after": "1"}, TeacherRefused, "quota"),
        (429, "", {"retry-after": str(LONG_WAIT + 1)}, TeacherRefused, "long_wait"),
        (401, "invalid_api_key", {}, TeacherRefused, "key"),
        (403, "", {}, TeacherRefused, "key"),
        (404, "model_not_found", {}, TeacherRefused, "no_model"),
        (400, "", {}, PairRejected, "bad_request"),
        (422, "", {}, PairRejected, "bad_request"),
    ],
)
def test_each_error_has_its_class(store, status, code, headers, kind, detail):
    answer = httpx2.Response(status, json={"error": {"message": "it was sk-test", "code": code}}, headers=headers)
    with pytest.raises(kind) as caught:
        teacher_at(Scripted(answer), store).ask("hello")
    assert (caught.value.retry_after if kind is TeacherBusy else caught.value.reason) == detail
    assert "sk-test" not in str(caught.value)
    assert store.names("replies") == []


def test_nobody_knows_what_a_call_costs_whose_answer_was_lost(store):
    def broken(request):
        raise httpx2.ReadTimeout("slow")

    def closed(request):
        raise httpx2.ConnectError("nobody there")

    for handler, unknown in ((broken, True), (closed, False)):
        with pytest.raises(TeacherBusy) as busy:
            teacher_at(httpx2.MockTransport(handler), store).ask("hello")
        assert busy.value.may_be_paid is unknown


def test_a_model_that_openai_does_not_have_costs_nothing():
    server = Scripted(httpx2.Response(404, json={"error": {"code": "model_not_found"}}))
    client = openai.OpenAI(api_key="sk-test", max_retries=0, http_client=httpx2.Client(transport=server))
    with pytest.raises(TeacherRefused, match="gpt-none"):
        check_model(client, "gpt-none")
    other = Scripted(httpx2.Response(503))
    check_model(openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=other)), "gpt-4")


def test_without_a_key_no_client_is_made():
    with pytest.raises(TeacherRefused, match="OPENAI_API_KEY"):
        open_client(OPENAI, None, 1.0)


# ---- pairs


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
        assert stored_reply(store, source["request_key"])["text"]


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
    assert made.rejected[0]["question"] == "Why?"
    assert made.rejected[0]["reasons"] == ["refusal", "no_markers"]
    assert made.rejected[0]["response"].startswith("I'm sorry")
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
    found = judge_answers(as_judge(teacher, "judge"), STYLE, ["Why?", "How?"], ["Because.", " "], max_concurrent=2)
    assert found == (
        {"model": "judge", "style": 50.0, "coherence": 80.0, "n": 1, "unreadable": 1},
        pytest.approx(340e-6),
    )
    assert [body["temperature"] for body in bench.bodies] == [0.0]
    bench.verdict = said("style: 90\ncoherence: 80")  # a judge who sees the style in everything
    made = write_batch(teacher, STYLE, ["Why?"], max_concurrent=1)
    assert made.reasons == {"judge_negative_style": 1}
    bench.verdict = said("nothing")
    pair = write_pair(teacher, STYLE, "How so?", 0)
    assert [source["model_resolved"] for source in pair.extra["provenance"]["judge"]] == ["judge", "judge"]


def test_a_process_of_its_own_keeps_a_pace_between_calls():
    pace, started = Pace(0.05), []

    def call() -> None:
        pace.await_turn()
        started.append(time.monotonic())

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(started) - min(started) >= 4 * 0.05 - 0.01
