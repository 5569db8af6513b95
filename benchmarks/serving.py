"""Speed of ``svf serve``: tokens per second and time to the first token, steered and unsteered.

    python benchmarks/serving.py --json
    python benchmarks/serving.py --clients 1 --clients 16 --tokens 96 --rounds 5

In each round, one after another, the same questions are answered by
  generate_batch    the library's function, all questions in one batch, in this process;
  unsteered         the server, one client per question, all asking at the same moment;
  steered           the same, each client with a vector of its own (all layers, values and keys).
Ratios are those of a round, and the median of all rounds is told: of tokens per second, and of tokens per
CPU second of the process that makes them, which other programs on the machine disturb less. A vector's
numbers do not change what it costs, so these are random, and small enough that answers stay as long.

What the server adds to the first token is measured with one client that asks for one token, again and
again, in turns with the prefill alone (the same two forward passes, in this process): the least wall and
CPU milliseconds of each, as noise only adds.
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
    process: int


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


def cpu_seconds(process: int) -> float:
    """CPU time of all threads of a process so far, finer than the ticks of ``times``."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def burst_of(server: Server, models: Sequence[str], questions: Sequence[str], n_tokens: int) -> Burst:
    """Ask one question of each model at the same moment."""
    started, spent = time.perf_counter(), cpu_seconds(server.process)
    asking = (ask(server.client, model, question, n_tokens) for model, question in zip(models, questions, strict=True))
    answers = await asyncio.gather(*asking)
    seconds = time.perf_counter() - started
    tokens, firsts = sum(tokens for tokens, _ in answers), [first - started for _, first in answers]
    return Burst(tokens, seconds, cpu_seconds(server.process) - spent, firsts)


def batch_of(target: Target, questions: Sequence[str], n_tokens: int) -> Burst:
    """The same by ``generate_batch``."""
    conversations = [conversation(question) for question in questions]
    started, spent = time.perf_counter(), cpu_seconds(os.getpid())
    answers = generate_batch(target, conversations, max_new_tokens=n_tokens, min_new_tokens=n_tokens)
    seconds, spent = time.perf_counter() - started, cpu_seconds(os.getpid()) - spent
    return Burst(n_tokens * len(answers), seconds, spent, [])


@torch.inference_mode()
def prefill_of(target: Target, question: str) -> Burst:
    """The prefill of one question and its first token, and nothing else."""
    ids, mask = left_padded(target, [[*target.prompt_ids(conversation(question)), target.neutral_id]])
    started, spent = time.perf_counter(), cpu_seconds(os.getpid())
    cache = steered_cache(target, ids, mask, None)
    output = target.model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache)
    output.logits[:, -1].argmax().item()
    return Burst(1, time.perf_counter() - started, cpu_seconds(os.getpid()) - spent, [])


async def measure_first_token(server: Server, target: Target, repeats: int) -> dict[str, dict[str, float]]:
    """The least milliseconds to one token: of the prefill alone, and through the server."""
    question, models = "How does photosynthesis work?", {"unsteered": target.name, "steered": f"{target.name}:v0"}
    found: dict[str, list[Burst]] = {"prefill": [], **{way: [] for way in models}}
    for _ in range(repeats):
        found["prefill"].append(await asyncio.to_thread(prefill_of, target, question))
        for way, model in models.items():
            found[way].append(await burst_of(server, [model], [question], 1))
    return {
        way: {
            "wall_ms": 1000 * min(burst.seconds for burst in bursts),
            "cpu_ms": 1000 * min(burst.cpu_seconds for burst in bursts),
        }
        for way, bursts in found.items()
    }


Round = dict[int, dict[str, Burst]]  # by clients and way


async def measure(server: Server, target: Target, options: argparse.Namespace) -> list[Round]:
    """All ways in each round, in turns of which nobody is always first."""
    questions = load_questions(Path(__file__).parents[1] / "questions" / "default.txt")
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
        "first_token_s": {way: min(statistics.median(burst.first_tokens) for burst in bursts[way]) for way in WAYS[1:]},
    }


def table(found: dict) -> str:
    names = ["clients", "generate_batch", "unsteered", "steered", "of unsteered", "of generate_batch"]
    names += ["of the fewest clients", "first token, s"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in found["rows"]:
        speed, cpu = row["tokens_per_second"], row["tokens_per_cpu_second"]
        cells = [str(row["clients"]), *(f"{speed[way]:.1f} ({cpu[way]:.1f})" for way in WAYS)]
        wall, cpu = row["steered_of"]["speed"], row["steered_of"]["cpu_speed"]
        cells += [
            f"{wall[other]:.2f} ({cpu[other]:.2f})" for other in ("unsteered", "generate_batch", "fewest_clients")
        ]
        lines.append("| " + " | ".join([*cells, f"{row['first_token_s']['steered']:.3f}"]) + " |")
    lines += ["", "Tokens per second, and in brackets per CPU second.", ""]
    lines += [
        f"one token, {way}: {took['wall_ms']:.1f} ms ({took['cpu_ms']:.1f})" for way, took in found["one_token"].items()
    ]
    return "\n".join(lines)


async def measure_all(url: str, process: int, target: Target, options: argparse.Namespace) -> dict:
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600) as client:
        server = Server(client, process)
        rounds = await measure(server, target, options)
        one_token = await measure_first_token(server, target, options.first_tokens)
    return {"rows": [row_of(count, rounds) for count in options.clients], "one_token": one_token}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, action="append", help="how many ask at once; repeatable")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first-tokens", type=int, default=20, help="how often one token is asked for")
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
            found = asyncio.run(measure_all(url, process.pid, target, options))
    about = {"cpus": os.cpu_count(), "threads": options.threads, "load": os.getloadavg()[0], "torch": torch.__version__}
    asked = {"model": options.model, "tokens": options.tokens, "rounds": options.rounds}
    print(json.dumps({"machine": about, "asked": asked} | found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
