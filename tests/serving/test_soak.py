"""Many clients at once, good ones and bad ones: ``SOAK_SECONDS=120 pytest -m slow tests/serving/test_soak.py``.

Every answer is what ``generate`` gives, every refusal is the right one, memory does not grow, and the
figures add up.
"""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter

import httpx2
import openai
import psutil
import pytest

from factory.vector.steer import Steering, generate
from tests.serving.running import KEY, served
from tests.serving.test_server import named_vector, question

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
QUESTIONS = ["Why?", "How do I make tea? " * 5, "Tell me of the sea. " * 20]
MAX_TOKENS = 24
MAY_GROW = 24 << 20  # bytes between the first and the last third: allocators keep some of what they got


def settings_of(target):
    """Three vectors and five settings: the fields ``model`` and ``steering``, the figures' label, and what it is."""
    calm, bold, wild = (named_vector(target, name, seed) for seed, name in enumerate(("calm", "bold", "wild")))
    bare = target.name
    return [calm, bold, wild], [
        (bare, None, "none", None),
        (f"{bare}:calm", None, "calm", Steering(calm)),
        (bare, [{"vector": "bold", "strength": 3, "key_strength": 0.7}], "bold", Steering(bold, 3, 0.7)),
        (
            bare,
            [{"vector": "wild", "strength": -2, "positions": 3, "layers": "1-2"}],
            "wild",
            Steering(wild.at_layers([1, 2]), -2, 0, 3),
        ),
        (f"{bare}:calm", [], "none", None),
    ]


class Soak:
    """What all clients share: the server's address, the right answers, and what was counted."""

    def __init__(self, url, process, target, settings):
        self.url, self.process, self.target, self.settings = url, psutil.Process(process.pid), target, settings
        self.expected = {
            (at, text): generate(target, text, vector=setting[3], max_new_tokens=MAX_TOKENS)
            for at, setting in enumerate(settings)
            for text in QUESTIONS
        }
        self.until = time.monotonic() + SECONDS
        self.statuses, self.tokens = Counter(), Counter()
        self.memory = []

    def something(self, chance):
        """One request and the answer that it should get."""
        at, text = chance.randrange(len(self.settings)), chance.choice(QUESTIONS)
        model, steering, label, _ = self.settings[at]
        body = {"model": model, "messages": question(text), "max_tokens": MAX_TOKENS}
        return body | ({} if steering is None else {"steering": steering}), self.expected[at, text], label

    def count(self, label, tokens):
        self.statuses[label, 200] += 1
        self.tokens[label] += tokens

    async def with_openai(self, chance):
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0) as client:
            while time.monotonic() < self.until:
                body, expected, label = self.something(chance)
                extra = {"steering": body.pop("steering")} if "steering" in body else {}
                reply = await client.chat.completions.create(**body, extra_body=extra)
                assert reply.choices[0].message.content == expected
                self.count(label, reply.usage.completion_tokens)

    async def with_stream(self, chance):
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0) as client:
            while time.monotonic() < self.until:
                body, expected, label = self.something(chance)
                extra = {"steering": body.pop("steering")} if "steering" in body else {}
                stream = await client.chat.completions.create(
                    **body, extra_body=extra, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
                self.count(label, chunks[-1].usage.completion_tokens)

    async def with_curl(self, chance):
        while time.monotonic() < self.until:
            body, expected, label = self.something(chance)
            words = ["curl", "-sS", f"{self.url}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", "@-"]
            curl = await asyncio.create_subprocess_exec(*words, stdin=-1, stdout=-1)
            said, _ = await curl.communicate(json.dumps(body).encode())
            reply = json.loads(said)
            assert reply["choices"][0]["message"]["content"] == expected
            self.count(label, reply["usage"]["completion_tokens"])

    async def with_malice(self, chance):
        """Leave, give wrong keys, send 10 MB, ask for what there is not."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=60) as client:
            while time.monotonic() < self.until:
                await chance.choice([self.leave, self.wrong_key, self.large_body, self.unknown])(client, chance)

    async def leave(self, client, chance):
        endless = {"model": self.target.name, "messages": question(), "max_tokens": 2000, "temperature": 1.5}
        if chance.random() < 0.5:
            async with client.stream("POST", PATH, json=endless | {"stream": True}, headers=RIGHT) as reply:
                assert reply.status_code == 200
                async for _ in reply.aiter_lines():
                    break
            self.statuses["none", 200] += 1
            return
        asking = asyncio.ensure_future(client.post(PATH, json=endless, headers=RIGHT))
        await asyncio.sleep(0.2 + chance.random())
        if not asking.done():
            asking.cancel()
            self.statuses["none", "left"] += 1
        else:
            self.statuses["none", 200] += 1

    async def wrong_key(self, client, chance):
        headers = chance.choice([{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
        reply = await client.post(PATH, json=self.something(chance)[0], headers=headers)
        assert reply.status_code == 401
        self.statuses["none", 401] += 1

    async def large_body(self, client, chance):
        body = b"x" * (10 << 20) if chance.random() < 0.5 else json.dumps({"messages": "x" * (10 << 20)}).encode()
        reply = await client.post(PATH, content=body, headers=RIGHT)
        assert reply.status_code == 413
        self.statuses["none", 413] += 1

    async def unknown(self, client, chance):
        body, _, _ = self.something(chance)
        strange = chance.choice([{"colour": "red"}, {"model": "gpt-9"}, {"steering": [{"vector": "angry"}]}, {"n": 99}])
        reply = await client.post(PATH, json=body | strange, headers=RIGHT)
        assert reply.status_code == 400
        self.statuses["none", 400] += 1

    async def watch(self):
        async with httpx2.AsyncClient(base_url=self.url, timeout=60) as client:
            while time.monotonic() < self.until:
                self.memory.append(self.process.memory_info().rss)
                assert (await client.get("/health")).status_code == 200
                await asyncio.sleep(SECONDS / 60)

    async def run(self):
        kinds = [self.with_openai] * 5 + [self.with_stream] * 4 + [self.with_curl] * 3 + [self.with_malice] * 4
        clients = [kind(random.Random(number)) for number, kind in enumerate(kinds)]
        await asyncio.gather(self.watch(), *clients)


PATH = "/v1/chat/completions"
RIGHT = {"Authorization": f"Bearer {KEY}"}


def figures_of(url):
    """Samples of ``/metrics`` once nothing is under way any more."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        text = httpx2.get(f"{url}/metrics", headers=RIGHT).text
        if "svf_serve_batch_rows 0.0" in text and "svf_serve_queue_requests 0.0" in text:
            return text
        time.sleep(0.2)
    raise AssertionError(text)


def samples(text, name):
    """``{labels: value}`` of one figure; labels in the order of their names."""
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    return {tuple(re.findall(r'"(.*?)"', labels)): float(value) for labels, value in found}


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 900)
def test_sixteen_clients_of_five_settings_get_their_own_answers_and_nothing_leaks(tmp_path, target):
    vectors, settings = settings_of(target)
    for vector in vectors:
        vector.save(tmp_path / f"{vector.style_name}.safetensors")
    with served(tmp_path, "--target", target.name, "--max-batch", "8") as (url, process):
        soak = Soak(url, process, target, settings)
        asyncio.run(soak.run())
        text = figures_of(url)
        assert process.poll() is None
    asked, made = samples(text, "svf_serve_requests_total"), samples(text, "svf_serve_answer_tokens_total")
    print(json.dumps({"asked": {" ".join(key): value for key, value in asked.items()}, "tokens": made_of(made)}))
    assert not any(status.startswith("5") for status, _ in asked)
    for label in ("calm", "bold", "wild"):
        assert asked["200", label] == soak.statuses[label, 200] > 0
        assert made[(label,)] == soak.tokens[label]
    assert asked["400", "none"] >= soak.statuses["none", 400] > 0  # who leaves while sending sent half a body
    for status in (401, 413):
        assert asked[str(status), "none"] == soak.statuses["none", status] > 0
    ended = sum(asked.get((status, "none"), 0) for status in ("200", "400", "499"))
    stayed, left = soak.statuses["none", 200] + soak.statuses["none", 400], soak.statuses["none", "left"]
    assert stayed <= ended <= stayed + left  # who leaves at once may not have reached the server
    assert made[("none",)] >= soak.tokens["none"]
    third = len(soak.memory) // 3
    early, late = max(soak.memory[third : 2 * third]), max(soak.memory[2 * third :])
    print(f"memory: {early >> 20} MiB at most in the second third, {late >> 20} in the last")
    assert late - early < MAY_GROW, soak.memory
    assert not any("Traceback" in line for line in process.said), "".join(process.said[-50:])


def made_of(made):
    return {label: value for (label,), value in made.items()}
