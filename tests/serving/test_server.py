"""``svf serve`` from outside: its clients, its refusals, and what it does when its vectors change."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import httpx2
import openai
import pytest

from factory.serving.app import _as_response
from factory.serving.engine import Busy
from factory.vector.steer import Steering, generate
from factory.vector.vector import SteeringVector
from tests.conftest import ROOT
from tests.serving.running import KEY, served
from tests.serving.test_engine import random_vector


def named_vector(target, name, seed, **metadata):
    vector = random_vector(target, seed)
    return SteeringVector(
        name, vector.key_vector, vector.value_vector, vector.layer_indices, target.name, metadata=metadata
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target):
    folder = tmp_path_factory.mktemp("vectors")
    named_vector(target, "calm", 1, recommended_strength=2.0).save(folder / "calm.safetensors")
    best = {"recommended_strength": 3.0, "recommended_key_strength": 0.5, "recommended_positions": 2}
    named_vector(target, "step_by_step_reasoning", 2, **best, recommended_layers=[1, 2]).save(folder / "steps.pt")
    SteeringVector("foreign", *(random_vector(target, 3).value_vector,) * 2, [0, 1, 2, 3], "another/model").save(
        folder / "foreign.pt"
    )
    return folder


@pytest.fixture(scope="module")
def url(folder, target):
    with served(folder, "--target", target.name, "--max-batch", "8") as (url, _):
        yield url


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def http(url):
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def question(text="Why is the sky blue?"):
    return [{"role": "user", "content": text}]


def test_the_models_are_the_bare_one_and_one_for_each_vector_of_it(client, target):
    names = [model.id for model in client.models.list()]
    assert names == [target.name, f"{target.name}:calm", f"{target.name}:step_by_step_reasoning"]


def test_the_openai_client_gets_what_generate_gives(client, folder, target):
    calm, steps = SteeringVector.load(folder / "calm.safetensors"), SteeringVector.load(folder / "steps.pt")
    cases = [
        (target.name, None, None),
        (f"{target.name}:calm", None, Steering.recommended(calm)),
        (f"{target.name}:step_by_step_reasoning", None, Steering.recommended(steps)),
        (f"{target.name}:calm", [], None),
        (
            target.name,
            [{"vector": "calm", "strength": -1, "key_strength": 0.3, "positions": 3, "layers": "1-3"}],
            Steering(calm.at_layers([1, 2, 3]), -1, 0.3, 3),
        ),
    ]
    for model, field, steering in cases:
        extra = {} if field is None else {"steering": field}
        reply = client.chat.completions.create(model=model, messages=question(), max_tokens=20, extra_body=extra)
        assert reply.choices[0].message.content == generate(target, question(), vector=steering, max_new_tokens=20), (
            model,
            field,
        )
        assert reply.usage.prompt_tokens == len(target.prompt_ids(question())) + 1
        assert reply.choices[0].finish_reason in ("length", "stop")
        if reply.choices[0].finish_reason == "length":
            assert reply.usage.completion_tokens == 20


def test_the_async_client_streams_the_same_from_many_requests_at_once(url, folder, target):
    calm = SteeringVector.load(folder / "calm.safetensors")

    async def ask(client, number):
        stream = await client.chat.completions.create(
            model=target.name,
            messages=question("Why? " * (1 + number)),
            max_completion_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"steering": [{"vector": "calm", "strength": number}]},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason in ("length", "stop")
        assert chunks[-1].usage.completion_tokens <= 16
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        expected = generate(target, "Why? " * (1 + number), vector=Steering(calm, number), max_new_tokens=16)
        assert text == expected, number


def test_several_answers_of_one_prompt_and_a_seed(client, target):
    def ask():
        return client.chat.completions.create(
            model=target.name, messages=question(), n=3, temperature=1.0, top_p=0.95, seed=7, max_tokens=12
        )

    first, second = ask(), ask()
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3
    assert first.usage.completion_tokens <= 36


def test_text_is_continued_too(client, target):
    reply = client.completions.create(model=target.name, prompt="The sky is", max_tokens=8)
    ids = target.tensor([target.tokenizer("The sky is")["input_ids"]])
    output = target.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    expected = target.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert reply.choices[0].text == expected
    chunks = list(client.completions.create(model=target.name, prompt="The sky is", max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "gpt-9"}, "there is no model 'gpt-9'; there is"),
        ({"steering": [{"vector": "angry"}]}, "there is no vector 'angry'; there is calm, step_by_step_reasoning"),
        ({"steering": [{"vector": "foreign"}]}, "is for another/model"),
        ({"steering": [{"vector": "calm", "power": 2}]}, "vector, strength, key_strength, positions, layers"),
        ({"steering": [{"vector": "calm", "layers": "7-9"}]}, "layers 0 to 3"),
        ({"steering": [{"vector": "calm", "strength": "NaN"}]}, "finite"),
        ({"colour": "red"}, "there is no field 'colour' here; there is model"),
        ({"messages": []}, "messages"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 100_000}, "exceed the 4096 tokens"),
        ({"n": 9}, "n is at most 8 here"),
    ],
)
def test_what_cannot_be_answered_is_a_400_that_says_what_there_is(http, target, changes, says):
    sent = {"model": target.name, "messages": question(), **changes}
    reply = http.post("/v1/chat/completions", json=sent)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert says in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_a_key_is_asked_for_and_a_body_that_is_too_large_is_refused(url, http):
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        reply = httpx2.get(f"{url}/v1/models", headers=headers)
        assert reply.status_code == 401, headers
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert http.post("/v1/chat/completions", content=b"x" * (10 << 20)).status_code == 413
    assert http.post("/v1/chat/completions", content=b"{").status_code == 400
    assert http.get("/nowhere").json()["error"]["message"] == "Not Found"


def test_a_client_that_leaves_frees_its_row(url, http, target):
    def rows():
        return next(line for line in http.get("/metrics").text.splitlines() if line.startswith("svf_serve_batch_rows"))

    sent = {"model": target.name, "messages": question(), "max_tokens": 3000, "temperature": 2.0}
    for stream in (True, False):
        leaving = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.5)
        with leaving, suppress(httpx2.ReadTimeout):
            if stream:
                with leaving.stream("POST", "/v1/chat/completions", json={**sent, "stream": True}) as reply:
                    next(reply.iter_lines())
            else:
                leaving.post("/v1/chat/completions", json=sent)
        until = time.monotonic() + 30
        while not rows().endswith(" 0.0"):
            assert time.monotonic() < until, rows()
            time.sleep(0.1)


def test_vectors_are_found_when_the_folder_changes(client, http, folder, target):
    new = folder / "new.pt"
    named_vector(target, "newcomer", 9).save(new)
    try:
        reply = http.post("/v1/vectors/reload").json()
        assert [vector["name"] for vector in reply["data"]] == ["calm", "newcomer", "step_by_step_reasoning"]
        assert "another/model" in reply["refused"]["foreign"]
        client.chat.completions.create(model=f"{target.name}:newcomer", messages=question(), max_tokens=2)
    finally:
        new.unlink()
    http.post("/v1/vectors/reload")
    with pytest.raises(openai.BadRequestError, match="there is no model"):
        client.chat.completions.create(model=f"{target.name}:newcomer", messages=question(), max_tokens=2)


def test_figures_tell_requests_by_vector(client, http, target):
    client.chat.completions.create(model=f"{target.name}:calm", messages=question(), max_tokens=3)
    text = http.get("/metrics").text
    assert 'svf_serve_requests_total{status="200",vector="calm"}' in text
    assert 'svf_serve_answer_tokens_total{vector="calm"}' in text
    assert 'svf_serve_first_token_seconds_count{vector="calm"}' in text


def test_curl_gets_the_same(url, target):
    body = json.dumps({"model": target.name, "messages": question(), "max_tokens": 9})
    words = ["curl", "-sS", f"{url}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", body]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(said)["choices"][0]["message"]["content"] == generate(target, question(), max_new_tokens=9)


def test_a_full_queue_says_when_to_come_back():
    reply = _as_response(Busy("full"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")


def test_the_end_finishes_what_is_under_way(folder, target):
    with served(folder, "--target", target.name) as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        stream = client.chat.completions.create(model=target.name, messages=question(), max_tokens=300, stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert process.wait(60) == 0
    assert text == generate(target, question(), max_new_tokens=300)
    assert not any("sky" in line for line in process.said), "texts in the log"


def test_another_host_is_refused_without_a_key_and_a_foreign_name_too(svf, folder, target):
    said = svf("serve", folder, "--host", "0.0.0.0", SVF_SERVER_KEY="")
    assert said.status == 2
    assert "SVF_SERVER_KEY" in said.err
    with served(folder, "--target", target.name, key="") as (url, _):
        assert httpx2.get(f"{url}/v1/models").status_code == 200
        assert httpx2.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403


def run_example(name, url, model):
    """What an example for a shell says; it is asked as a person would ask."""
    programs = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "SERVER": url, "SVF_SERVER_KEY": KEY, "LLM_LOAD_PLUGINS": ""}
    words = [ROOT / "examples" / name, model, "Why is the sky blue?"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_the_example_for_curl_streams_the_answer_of_generate(url, target):
    lines = run_example("serving_curl.sh", url, target.name).splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == generate(target, question(), max_new_tokens=80)


@pytest.mark.slow
def test_the_example_for_llm_says_what_generate_says(url, target):
    assert run_example("serving_llm.sh", url, target.name).strip() == generate(target, question(), max_new_tokens=80)


@pytest.mark.slow
def test_the_llm_command_line_gets_the_same(url, target, tmp_path):
    entry = {"model_id": "steered", "model_name": f"{target.name}:calm", "api_base": f"{url}/v1", "api_key_name": "svf"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    llm = shutil.which("llm", path=os.path.dirname(sys.executable))
    words = [llm, "-m", "steered", "--key", KEY, "-o", "max_tokens", "9", "Why is the sky blue?"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    reply = client.chat.completions.create(model=f"{target.name}:calm", messages=question(), max_tokens=9)
    assert said.stdout.strip() == reply.choices[0].message.content
