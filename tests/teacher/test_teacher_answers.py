"""How each kind of a teacher's answer is taken, what is kept of it, and what it costs."""

from __future__ import annotations

import contextlib
import uuid

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import BadReply, PairRejected, TeacherBusy, TeacherRefused
from factory.store import Store
from factory.teacher.client import LONG_WAIT, check_model, open_client
from tests.endpoint import completion
from tests.scripted import OPENAI, Scripted, said, teacher_at


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
