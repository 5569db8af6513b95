"""What a teacher is asked: each request, its key, and to whom it may be sent."""

from __future__ import annotations

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config import Settings
from factory.errors import RunPaused
from factory.planning.plan import plan_run
from factory.run.ledger import Ledger
from factory.steps.write import write_step
from factory.teacher.client import Teacher
from factory.teacher.connection import open_client
from factory.teacher.endpoint import find_key
from factory.teacher.replies import Payer
from factory.teacher.request import build_request, request_key
from factory.teacher.spec import TeacherSpec
from tests.endpoint import running_endpoint
from tests.scripted import LOCAL, OPENAI, Scripted

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
            Teacher(spec, open_client(spec.base_url, variable, 5.0), store, Payer("run", "steps", 0)).ask(
                f"hello {variable}"
            )
            assert endpoint.keys == {f"Bearer {key}"}
            endpoint.keys.clear()
        assert not [name for name in endpoint.headers_seen if name.startswith("openai")]


def test_openai_s_key_goes_to_openai_whatever_address_the_environment_names(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    assert open_client(None, None, 5.0).base_url.host == "api.openai.com"


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
    monkeypatch.setattr("factory.run.asking.open_client", lambda *asked: client)
    settings = Settings(teacher_model="gpt-writes", judge_model="gpt-judges", regenerate_datasets=True)
    plan = plan_run(settings, store, tmp_path, limit=1)
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    with pytest.raises(RunPaused) as paused:
        write_step(ledger.of(settings.styles[0]), 0, settings, "memory://")
    assert paused.value.reason == "no_model"
    assert missing in ledger.paused().message
    assert {method for method, _ in paths} == {"GET"}
