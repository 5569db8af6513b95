"""A teacher's endpoint that counts: OpenAI-compatible, in a thread or as a program, with faults on demand.

Answers depend on the request alone. It stands in for what llmock cannot do: it keeps a tally of
every call by request, and answers in a style.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = (
    "river stone lamp copper window garden letter engine valley paper silver thread cloud harbor orchard signal",
    "bridge candle forest mirror anchor pepper velvet saddle meadow kettle ribbon summit tunnel walnut",
)


def answer_to(prompt: str) -> str:
    """Forty words that belong to ``prompt`` alone, as numbered steps where it asks for them."""
    draw = random.Random(hashlib.sha256(prompt.encode()).digest())
    sentences = [" ".join(draw.choices(" ".join(WORDS).split(), k=10)) + "." for _ in range(4)]
    if "step" in prompt.lower() and "no steps" not in prompt.lower() and "avoid steps" not in prompt.lower():
        return "\n".join(f"Step {n}: {text}" for n, text in enumerate(sentences, start=1))
    return " ".join(sentences)


DRAFT = {
    "instruction": "Answer in numbered steps, each on a line of its own.",
    "markers": ["^Step #", "first of all"],
    "openings": ["Step 1:"],
    "questions": [
        f"How do I mend a {thing} at home?" for thing in ("kettle", "window", "chair", "lamp", "pump", "shoe")
    ],
    "example": "Step 1: open it.\nStep 2: look inside.\nStep 3: close it again.",
    "plain": "Open it, look inside, and close it again.",
}  # of a style, as a teacher writes it who is asked for one


def draft_and_answers(prompt: str) -> str:
    """A draft of a style to who asks for one, else an answer that is in this style where it is asked for."""
    return f"Here it is:\n{json.dumps(DRAFT)}" if '"markers"' in prompt else answer_to(prompt)


class Endpoint(ThreadingHTTPServer):
    """The server and its tally. ``fail``: share of calls that fail, with one of ``kinds``; 0 is a lost connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        *,
        port: int = 0,
        delay: float = 0.0,
        fail: float = 0.0,
        kinds: Sequence[int] = (500,),
        per_minute: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.delay, self.fail, self.kinds, self.per_minute = delay, fail, kinds, per_minute
        self.status: int | None = None  # every call gets it
        self.code = ""
        self.answer = answer_to  # what is said to a prompt
        self.arrivals: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()
        self.paid: collections.Counter[str] = collections.Counter()  # answers sent with 200, by request
        self.keys: set[str] = set()  # Authorization headers seen
        self.headers_seen: set[str] = set()
        self.lock = threading.Lock()
        self.draw = random.Random(seed)

    @property
    def base_url(self) -> str:
        """What a client is given."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def judge(self) -> int:
        """The status of the next answer."""
        now = time.monotonic()
        with self.lock:
            self.arrivals.append(now)
            if self.status is not None:
                return self.status
            if self.per_minute and sum(at > now - 60 for at in self.arrivals) > self.per_minute:
                return 429
            return self.draw.choice(self.kinds) if self.draw.random() < self.fail else 200

    def tally(self) -> dict[str, object]:
        """How often which status was sent, and how often each request was answered with 200."""
        with self.lock:
            return {"statuses": dict(self.statuses), "paid": dict(self.paid)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Endpoint

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed while it asked: nothing to answer, or to be paid for
            self.close_connection = True
            return
        self.server.keys.add(self.headers.get("Authorization", ""))
        self.server.headers_seen |= set(map(str.lower, self.headers))
        status = self.server.judge()
        time.sleep(self.server.delay)
        name = hashlib.sha256(body).hexdigest()
        with self.server.lock:
            self.server.statuses[status] += 1
            self.server.paid[name] += status == 200
        if status == 0:
            self.close_connection = True
            return
        prompt = json.loads(body)["messages"][0]["content"]
        if status == 200:
            content = completion(self.server.answer(prompt), model=json.loads(body)["model"])
        else:
            content = {"error": {"message": f"no: {self.headers.get('Authorization')}", "code": self.server.code}}
        self._send(status, content)

    def do_GET(self) -> None:
        self._send(200, self.server.tally())

    def _send(self, status: int, content: object) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if status == 429 and 429 in self.server.kinds:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal quiet."""


def completion(text: str, *, model: str = "teacher", finish_reason: str = "stop") -> dict[str, object]:
    """A chat completion as OpenAI sends it."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 60, "total_tokens": 160},
    }


@contextlib.contextmanager
def running_endpoint(**options):
    """The endpoint in a thread, until the block ends."""
    server = Endpoint(**options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until stopped; print the URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    options = parser.parse_args()
    with running_endpoint(delay=options.delay, port=options.port) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
