"""The field ``steering`` before vLLM's server, with an application in its place that tells what reached it."""

import json
from types import SimpleNamespace

import httpx2
import pytest
import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from factory.vector.vector import SteeringVector
from factory.vllm.middleware import SteeringField


def save_vector(folder, name, seed=0, model="tiny"):
    numbers = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(seed))
    SteeringVector(name, *numbers, [0, 1, 2], model).save(folder / f"{name}.pt")


async def echo(request):
    body = await request.body()
    told = int(request.headers["content-length"])
    return JSONResponse(
        {"got": json.loads(body) if body.startswith(b"{") else body.decode(), "whole": told == len(body)}
    )


async def models(request):
    return JSONResponse(
        {"object": "list", "data": [{"id": "tiny", "object": "model", "root": "/tiny", "parent": None}]}
    )


@pytest.fixture
def http(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    save_vector(tmp_path, "calm")
    save_vector(tmp_path, "alien", model="other/model")
    routes = [Route(path, echo, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions", "/tokenize")]
    app = Starlette(routes=[*routes, Route("/v1/models", models)], middleware=[Middleware(SteeringField)])
    text = SimpleNamespace(rope_parameters={"rope_type": "default"})
    model = SimpleNamespace(
        served_model_name="tiny",
        model="no/such-folder",
        hf_config=text,
        hf_text_config=text,
        get_total_num_kv_heads=lambda: 2,
        get_head_size=lambda: 4,
        get_total_num_hidden_layers=lambda: 3,
    )
    transfer = SimpleNamespace(kv_connector_extra_config={"vectors": str(tmp_path)})
    app.state.vllm_config = SimpleNamespace(model_config=model, kv_transfer_config=transfer)
    # starlette's own test client wants another HTTP library; its transport is all that is needed.
    return Asking(app, tmp_path)


class Asking:
    """Asks an application without a server."""

    def __init__(self, app, folder):
        self.app, self.folder = app, folder

    def __call__(self, method, path, **content):
        import asyncio

        async def ask():
            transport = httpx2.ASGITransport(app=self.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **content)

        return asyncio.run(ask())

    def chat(self, **fields):
        return self("POST", "/v1/chat/completions", json={"model": "tiny", "messages": [], **fields})


ENTRY = {"vector": "calm", "strength": 2.0, "layers": "1-2"}


@pytest.mark.parametrize(
    ("fields", "steering", "neutral"),
    [
        ({}, [], True),
        ({"model": "no/such-folder"}, [], True),
        ({"steering": []}, [], True),
        ({"steering": [ENTRY]}, [ENTRY], True),
        ({"model": "tiny:calm"}, [{"vector": "calm"}], True),
        ({"model": "tiny:calm", "steering": [ENTRY, ENTRY]}, [ENTRY, ENTRY], True),
        ({"model": "tiny:calm", "steering": []}, [], True),
        ({"kv_transfer_params": {"steering": [ENTRY], "neutral": False}}, [ENTRY], False),
        ({"steering": [ENTRY], "continue_final_message": True}, [ENTRY], False),
        ({"steering": [ENTRY], "add_generation_prompt": False}, [ENTRY], False),
    ],
)
def test_what_a_chat_asks_for_reaches_the_connector(http, fields, steering, neutral):
    answer = http.chat(**fields).json()
    assert answer["whole"]
    got = answer["got"]
    assert got["kv_transfer_params"] == {"steering": steering, "neutral": neutral}
    assert got["model"] == "tiny"
    assert "steering" not in got


def test_text_is_continued_without_a_neutral_token(http):
    got = http("POST", "/v1/completions", json={"model": "tiny:calm", "prompt": "Once"}).json()["got"]
    assert got["kv_transfer_params"] == {"steering": [{"vector": "calm"}], "neutral": False}


def test_other_parameters_for_a_connector_stay(http):
    got = http.chat(steering=[ENTRY], kv_transfer_params={"do_remote_decode": True}).json()["got"]
    assert got["kv_transfer_params"]["do_remote_decode"] is True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "tiny:loud"}, "there is tiny, tiny:calm"),
        ({"model": "tiny:alien"}, "other/model"),
        ({"steering": [{"vector": "loud"}]}, "there is calm"),
        (
            {"steering": [{"vector": "calm", "loudness": 1}]},
            "there is vector, strength, key_strength, positions, layers",
        ),
        ({"steering": "calm"}, "list"),
        ({"steering": [{"vector": "calm", "layers": "9"}]}, "layers"),
        ({"kv_transfer_params": {"steering": [{"vector": "loud"}]}}, "there is calm"),
    ],
)
def test_what_cannot_be_followed_is_a_400_as_openai_writes_it(http, fields, words):
    answer = http.chat(**fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_what_is_not_about_steering_passes_as_it_is(http):
    assert http("POST", "/tokenize", json={"steering": 1}).json()["got"] == {"steering": 1}
    assert http("POST", "/v1/chat/completions", content=b"not json").json() == {"got": "not json", "whole": True}
    assert http.chat(model="adapter").json()["got"]["model"] == "adapter"


def test_models_are_listed_with_a_name_for_each_vector_also_one_that_came_later(http):
    assert [one["id"] for one in http("GET", "/v1/models").json()["data"]] == ["tiny", "tiny:calm"]
    save_vector(http.folder, "late", 1)
    assert http.chat(model="tiny:late").json()["got"]["kv_transfer_params"]["steering"] == [{"vector": "late"}]
    listed = http("POST", "/v1/vectors/reload").json()
    assert [one["name"] for one in listed["data"]] == ["calm", "late"]
    assert "alien" in listed["refused"]
    assert http("GET", "/v1/vectors").json() == listed
