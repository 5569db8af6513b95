"""How each kind of a teacher's answer is taken, what is kept of it, and what it costs."""

from __future__ import annotations

import contextlib
import json
import uuid

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import BadReply, PairRejected, TeacherBusy, TeacherRefused
from factory.files import whole_text
from factory.store import Store
from factory.teacher.connection import check_model, open_client
from factory.teacher.faults import LONG_WAIT
from factory.teacher.request import build_request, request_key
from tests.endpoint import completion
from tests.scripted import LOCAL, Scripted, said, teacher_at


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (httpx2.Response(200, json=completion("x") | {"choices": []}), "empty"),
        (said(""), "empty"),
        (said(None), "empty"),
        (said("half a sent", finish_reason="length"), "length"),
        (said("", finish_reason="content_filter"), "content_filter"),
        (said("half a sent", finish_reason="model_length"), "length"),
        (said("half a sent", finish_reason="MAX_TOKENS"), "length"),
        (said("half a sent", finish_reason="max_output_tokens"), "length"),
        (said("half a sent", finish_reason="SAFETY"), "content_filter"),
        (said("half a sent", finish_reason="insufficient_system_resource"), "unfinished"),
        (said("<think>I wonder what"), "empty"),
    ],
)
def test_a_completion_with_nothing_usable_is_kept_and_never_asked_again(store, response, reason):
    server = Scripted(response)
    teacher = teacher_at(server, store)
    for _ in range(2):
        with pytest.raises(BadReply) as bad:
            teacher.ask("hello")
        assert bad.value.reason == reason
    assert len(server.bodies) == 1


HTML = httpx2.Response(200, content=b"<html>busy</html>", headers={"content-type": "text/html"})


@pytest.mark.parametrize(
    ("hiccup", "kind", "says"),
    [
        (HTML, TeacherBusy, "text/html that is no chat completion"),
        (httpx2.Response(200, content=b'{"choices": ['), TeacherBusy, "no chat completion"),
        (httpx2.Response(200, json={"choices": []}), TeacherBusy, "no chat completion"),
        (httpx2.Response(200, json={"error": {"message": "sk-test"}}), TeacherBusy, "an error in place of an answer"),
        (httpx2.Response(200, json={"error": {"code": 502}}), TeacherBusy, "502"),
        (httpx2.Response(200, json={"choices": [{"error": {"code": 503}}]}), TeacherBusy, "503"),
        (httpx2.Response(200, json={"error": {"code": "402", "message": "no"}}), TeacherRefused, "add credit"),
        (httpx2.Response(200, json={"error": {"code": "insufficient_quota"}}), TeacherRefused, "add credit"),
    ],
)
def test_what_is_no_completion_is_never_kept_and_the_healthy_server_is_asked_again(store, hiccup, kind, says):
    server = Scripted(hiccup, said("An answer."))
    teacher = teacher_at(server, store)
    with pytest.raises(kind, match=says):
        teacher.ask("hello")
    assert store.names("replies") == []
    assert teacher.ask("hello").text == "An answer."


def test_a_hiccup_that_an_earlier_version_kept_is_asked_again(store):
    teacher = teacher_at(Scripted(said("An answer.")), store)
    key = request_key(LOCAL, build_request(LOCAL, "hello"))
    store.write_json(
        f"replies/{key}.json", {"bad": "not_json", "text": "", "paid_by": {"run": "run", "style": "steps", "batch": 0}}
    )
    assert teacher.ask("hello").text == "An answer."


@pytest.mark.parametrize(
    "content",
    [
        "<think>\nThe user wants eggs.\n</think>\n\nAn answer.",
        "The template wrote the opening tag.\n</think>An answer.",
        "[THINK]hm[/THINK]An answer.",
        "<thinking>hm <b>x</b></thinking> An answer.",
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "An answer."}],
        ["An ", {"text": "answer."}],
    ],
)
def test_an_answer_is_read_without_its_thought_and_from_all_its_parts(store, content):
    assert teacher_at(Scripted(said(content)), store).ask("hello").text == "An answer."


@given(end=st.sampled_from(["stop", "STOP", "eos", "end_turn", "eos_token", "COMPLETE", None, ""]))
def test_the_known_good_ends_of_servers_are_taken(end):
    teacher = teacher_at(Scripted(said("An answer.", finish_reason=end)), Store(f"memory://{uuid.uuid4().hex}"))
    assert teacher.ask("hello").text == "An answer."


def test_half_an_emoji_at_the_end_of_an_answer_costs_no_answer(store):
    body = json.dumps(completion("hello \ud83d")).encode()
    server = Scripted(httpx2.Response(200, content=body, headers={"content-type": "application/json"}))
    for _ in range(2):
        assert teacher_at(server, store).ask("hello").text == "hello \ufffd"
    assert len(server.bodies) == 1


@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=8))
def test_any_text_has_a_hash_and_comes_back_from_the_store(text):
    store = Store(f"memory://{uuid.uuid4().hex}")
    assert store.read_json(store.put_json("pairs", {"text": text})) == {"text": text}
    whole_text(text).encode()


@pytest.mark.parametrize("read", [0, 9])
def test_a_server_that_counts_nothing_is_priced_at_the_worst(store, read):
    usage = {"prompt_tokens": read, "completion_tokens": 0}
    reply = teacher_at(Scripted(httpx2.Response(200, json=completion("word " * 20) | {"usage": usage})), store).ask("a")
    assert reply.usage == {}
    assert reply.cost_usd > 20 * 4.0 / 1e6


def test_a_thought_that_nobody_counted_is_priced_too(store):
    answers = ["word", "<think>" + "hm " * 50 + "</think>word"]
    costs = [
        teacher_at(Scripted(httpx2.Response(200, json=completion(text) | {"usage": None})), store).ask(text).cost_usd
        for text in answers
    ]
    assert costs[1] - costs[0] > 150 * 4.0 / 1e6


class Picky(Scripted):
    """A server that refuses parameters."""

    def __init__(self, refuses: dict[str, str], status: int = 422) -> None:
        super().__init__()
        self.refuses, self.status = refuses, status

    def answer(self, request):
        body = json.loads(request.content)
        self.bodies.append(body)
        for name, words in self.refuses.items():
            if name in body:
                return httpx2.Response(self.status, json={"error": {"message": words, "code": "unsupported"}})
        return said("An answer.")


@pytest.mark.parametrize("status", [400, 422])
def test_a_parameter_that_a_server_refuses_is_left_out_recorded_and_said_once(store, caplog, status):
    server = Picky({"seed": "extra_forbidden: body, seed", "temperature": "'temperature' is not supported"}, status)
    teacher = teacher_at(server, store)
    with caplog.at_level("WARNING", "factory"):
        replies = [teacher.ask(prompt) for prompt in ("hello", "again")]
    assert [reply.left_out for reply in replies] == [("seed", "temperature")] * 2
    assert not {"seed", "temperature"} & replies[0].parameters.keys()
    assert len(server.bodies) == 4, "two refusals, then none"
    assert [line for line in caplog.messages if "seed, temperature" in line] == caplog.messages


def test_the_bound_of_an_answer_is_renamed_and_never_left_out(store):
    server = Picky({"max_tokens": "'max_tokens' is not supported: use 'max_completion_tokens' instead"}, 400)
    teacher_at(server, store).ask("hello")
    assert server.bodies[-1]["max_completion_tokens"] == 800


def test_a_prompt_that_is_refused_and_speaks_of_seeds_teaches_nothing(store):
    server = Scripted(
        httpx2.Response(400, json={"error": {"message": "not answered: how do I sow a seed?"}}), said("An answer.")
    )
    server.answers.insert(0, server.answers[0])
    teacher = teacher_at(server, store)
    with pytest.raises(PairRejected):
        teacher.ask("How do I sow a seed?")
    assert teacher.ask("hello").left_out == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)


@given(
    body=JSON,
    part=st.sampled_from([(), ("choices",), ("choices", 0), ("choices", 0, "message"), ("usage",), ("model",)]),
)
def test_whatever_json_a_server_sends_is_kept_and_priced_if_it_is_a_completion_and_raises_no_other_error(body, part):
    store, content = Store(f"memory://{uuid.uuid4().hex}"), completion("An answer.")
    place = content
    for name in part[:-1]:
        place = place[name]
    if part:
        place[part[-1]] = body
    teacher = teacher_at(Scripted(httpx2.Response(200, json=content if part else body)), store)
    with contextlib.suppress(BadReply, TeacherBusy):
        reply = teacher.ask("hello")
        assert reply.text == "An answer."
    for name in store.names("replies"):
        assert store.read_json(f"replies/{name}")["cost_usd"] > 0


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
        (403, "content_policy_violation", {}, PairRejected, "content_filter"),
        (400, "content_filter", {}, PairRejected, "content_filter"),
        (404, "", {}, TeacherRefused, "address"),
        (405, "", {}, TeacherRefused, "address"),
        (402, "", {}, TeacherRefused, "quota"),
        (407, "", {}, TeacherRefused, "proxy"),
        (418, "", {}, TeacherRefused, "refused"),
        (421, "", {}, TeacherRefused, "refused"),
        (400, "", {}, PairRejected, "bad_request"),
        (413, "", {}, PairRejected, "bad_request"),
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


@pytest.mark.parametrize("status", [status for status in range(400, 500) if status not in (400, 413, 422)])
def test_no_status_but_400_413_and_422_is_a_verdict_on_a_prompt(store, status):
    with pytest.raises((TeacherBusy, TeacherRefused)):
        teacher_at(Scripted(httpx2.Response(status, json={"error": {"message": "no"}})), store).ask("hello")


def test_a_moderator_s_403_rejects_its_prompt_alone(store):
    error = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "..."}}
    with pytest.raises(PairRejected) as rejected:
        teacher_at(Scripted(httpx2.Response(403, json={"error": error})), store).ask("hello")
    assert rejected.value.reason == "content_filter"


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
        open_client(None, None, 1.0)
