"""Speed of ``svf serve``: tokens per second and time to the first token, steered and unsteered.

    python benchmarks/serving.py --json
    python benchmarks/serving.py --clients 1 --clients 16 --tokens 96 --rounds 5

In each round, one after another, the same questions are answered by
  generate_batch    the library's function, all questions in one batch, in this process;
  unsteered         the server, one client per question, all asking at the same moment;
  steered           the same, each client with a vector of its own (all layers, values and keys).
Ratios are those of a round, and the median of all rounds is told: of tokens per second, and of tokens per
CPU second of the process that makes them, which other programs on the machine disturb less. A vector's
numbers do not change what it costs, so these are random, and small enough that answers stay as long. What
the server adds to the first token is measured against reading the same questions in one batch in this
process, and taken from the best round of each, as waiting is what noise adds to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory import SteeringVector, load_target
from factory.pairs.dataset import load_questions
from factory.target.download import BUILT_IN
from factory.target.model import Target
from factory.vector.steer import generate_batch, left_padded, steered_cache
from tests.serving.running import KEY, served

CLIENTS = (1, 4, 16)
WAYS = ("generate_batch", "unsteered", "steered")
VECTOR_SCALE = 0.02


@dataclass(frozen=True)
class Server:
    """A running ``svf serve``."""

    client: httpx2.AsyncClient
    process: psutil.Process


@dataclass(frozen=True)
class Burst:
    """What one way took to answer some questions that were asked at once."""

    tokens: int
    seconds: float
    cpu_seconds: float
    first_tokens: list[float]  # seconds from the asking to each answer's first token

    @property
    def speed(self) -> float:
        """Tokens per second, reading the prompts included."""
        return self.tokens / self.seconds

    @property
    def cpu_speed(self) -> float:
        """Tokens per CPU second of the process that made them."""
        return self.tokens / self.cpu_seconds


def write_vectors(folder: Path, target: Target, count: int) -> None:
    """``count`` random vectors of all layers."""
    shape = (target.n_layers, *target.shape)
    best = {"recommended_strength": 1.0, "recommended_key_strength": 0.8}
    for number in range(count):
        torch.manual_seed(number)
        keys, values = VECTOR_SCALE * torch.randn(shape), VECTOR_SCALE * torch.randn(shape)
        layers = list(range(target.n_layers))
        SteeringVector(f"v{number}", keys, values, layers, target.name, metadata=best).save(folder / f"v{number}.pt")


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


async def ask(client: httpx2.AsyncClient, model: str, question: str, n_tokens: int) -> tuple[int, float]:
    """One streamed answer: its tokens, and the moment of the first."""
    body = {"model": model, "messages": conversation(question), "max_tokens": n_tokens, "stream": True}
    first, tokens = 0.0, 0
    async with client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}
    ) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            first = first or (time.perf_counter() if '"content":"' in line and '"content":""' not in line else 0.0)
            if '"usage":{' in line:
                tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    return tokens, first


def cpu_seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system


async def burst_of(server: Server, models: Sequence[str], questions: Sequence[str], n_tokens: int) -> Burst:
    """Ask one question of each model at the same moment."""
    started, spent = time.perf_counter(), cpu_seconds(server.process)
    asking = (ask(server.client, model, question, n_tokens) for model, question in zip(models, questions, strict=True))
    answers = await asyncio.gather(*asking)
    seconds = time.perf_counter() - started
    tokens, firsts = sum(tokens for tokens, _ in answers), [first - started for _, first in answers]
    return Burst(tokens, seconds, cpu_seconds(server.process) - spent, firsts)


def batch_of(target: Target, questions: Sequence[str], n_tokens: int) -> Burst:
    """The same by ``generate_batch``, and by its two forward passes to the first token."""
    conversations = [conversation(question) for question in questions]
    started = time.perf_counter()
    first_tokens(target, questions)
    first = time.perf_counter() - started
    started, spent = time.perf_counter(), time.process_time()
    answers = generate_batch(target, conversations, max_new_tokens=n_tokens, min_new_tokens=n_tokens)
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    return Burst(n_tokens * len(answers), seconds, spent, [first] * len(answers))


@torch.inference_mode()
def first_tokens(target: Target, questions: Sequence[str]) -> list[int]:
    """The prefill of all questions in one batch, and nothing else."""
    ids, mask = left_padded(target, [[*target.prompt_ids(conversation(q)), target.neutral_id] for q in questions])
    cache = steered_cache(target, ids, mask, None)
    positions = (mask.cumsum(dim=1) - 1)[:, -1:]
    output = target.model(input_ids=ids[:, -1:], attention_mask=mask, position_ids=positions, past_key_values=cache)
    return output.logits[:, -1].argmax(dim=-1).tolist()


def added_per_request(bursts: Sequence[Burst], prefills: Sequence[Burst]) -> float:
    """Milliseconds by which the last first token comes later than from the prefill alone, per request."""
    latest, bare = (min(max(burst.first_tokens) for burst in ones) for ones in (bursts, prefills))
    return 1000 * (latest - bare) / len(bursts[0].first_tokens)


Round = dict[int, dict[str, Burst]]  # by clients and way


async def measure(server: Server, target: Target, options: argparse.Namespace) -> list[Round]:
    """All ways in each round, in turns of which nobody is always first."""
    questions = load_questions(Path(__file__).parents[1] / "questions" / "default.txt")[: max(options.clients)]
    rounds: list[Round] = []
    await burst_of(server, [target.name, f"{target.name}:v0"], questions[:2], 4)  # to warm up
    batch_of(target, questions[:1], 4)
    for number in range(options.rounds):
        rounds.append({})
        for count in options.clients:
            models = {"unsteered": [target.name] * count, "steered": [f"{target.name}:v{at}" for at in range(count)]}
            bursts = rounds[-1][count] = {}
            for turn in range(len(WAYS)):
                way = WAYS[(number + turn) % len(WAYS)]
                if way in models:
                    bursts[way] = await burst_of(server, models[way], questions[:count], options.tokens)
                else:
                    bursts[way] = await asyncio.to_thread(batch_of, target, questions[:count], options.tokens)
            said = ", ".join(f"{way} {bursts[way].speed:.1f} ({bursts[way].cpu_speed:.1f} of CPU)" for way in WAYS)
            print(f"round {number + 1}, {count} clients, tokens/s: {said}", file=sys.stderr, flush=True)
    return rounds


def row_of(count: int, rounds: Sequence[Round]) -> dict:
    """Medians over the rounds for ``count`` clients."""
    found = [bursts[count] for bursts in rounds]
    alone = [bursts[min(bursts)] for bursts in rounds]
    bursts = {way: [one[way] for one in found] for way in WAYS}

    def ratio(other: str, of: str, others: Sequence[dict[str, Burst]] = found) -> float:
        pairs = zip(found, others, strict=True)
        return statistics.median(getattr(one["steered"], of) / getattr(two[other], of) for one, two in pairs)

    return {
        "clients": count,
        "tokens_made": {way: sum(burst.tokens for burst in bursts[way]) for way in WAYS},
        "tokens_per_second": {way: statistics.median(burst.speed for burst in bursts[way]) for way in WAYS},
        "tokens_per_cpu_second": {way: statistics.median(burst.cpu_speed for burst in bursts[way]) for way in WAYS},
        "steered_of": {
            of: {"unsteered": ratio("unsteered", of), "generate_batch": ratio("generate_batch", of)}
            | {"fewest_clients": ratio("steered", of, alone)}
            for of in ("speed", "cpu_speed")
        },
        "first_token_s": {way: min(statistics.median(burst.first_tokens) for burst in bursts[way]) for way in WAYS},
        "added_first_token_ms": {way: added_per_request(bursts[way], bursts["generate_batch"]) for way in WAYS[1:]},
    }


def table(rows: list[dict]) -> str:
    names = ["clients", "generate_batch, tokens/s", "unsteered", "steered", "of unsteered", "of generate_batch"]
    names += ["of the fewest clients", "first token, s", "added, ms per request"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        wall, cpu = row["steered_of"]["speed"], row["steered_of"]["cpu_speed"]
        cells = [str(row["clients"]), *(f"{row['tokens_per_second'][way]:.1f}" for way in WAYS)]
        cells += [
            f"{wall[other]:.2f} ({cpu[other]:.2f})" for other in ("unsteered", "generate_batch", "fewest_clients")
        ]
        cells += [f"{row['first_token_s']['steered']:.3f}", f"{row['added_first_token_ms']['steered']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "In brackets: by CPU seconds."])


async def measure_at(url: str, process: psutil.Process, target: Target, options: argparse.Namespace) -> list[Round]:
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600) as client:
        return await measure(Server(client, process), target, options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, action="append", help="how many ask at once; repeatable")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the model, in both processes")
    parser.add_argument("--model", default=BUILT_IN)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.clients = sorted(options.clients or CLIENTS)
    torch.set_num_threads(options.threads)
    target = load_target(options.model, "cpu")
    with tempfile.TemporaryDirectory(prefix="svf-serving-") as folder:
        write_vectors(Path(folder), target, max(options.clients))
        words = ("--target", options.model, "--max-batch", str(max(options.clients)))
        environment = {"OMP_NUM_THREADS": str(options.threads)}
        with served(folder, *words, environment=environment) as (url, process):
            rounds = asyncio.run(measure_at(url, psutil.Process(process.pid), target, options))
    rows = [row_of(count, rounds) for count in options.clients]
    about = {"cpus": os.cpu_count(), "threads": options.threads, "load": os.getloadavg()[0], "torch": torch.__version__}
    asked = {"model": options.model, "tokens": options.tokens, "rounds": options.rounds}
    print(json.dumps({"machine": about, "asked": asked, "rows": rows}) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
