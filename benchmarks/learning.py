"""What learning adds to a mean, and what a round of it costs, each against its peers in the same run.

    python benchmarks/learning.py --json
    python benchmarks/learning.py --style creative_explorer --set rounds=40 --set rate=0.02
    python benchmarks/learning.py --only speed
    python benchmarks/learning.py --shuffled --start random --only quality

Quality: a style's vector is learned from its starter pairs and answers the thirty held-out questions
that measure, and twelve with exact answers; so do the unsteered model, the one prompted with the style's
instruction, and the mean difference at the setting that its sweep chose (docs/lab-notebook.md).
Neither pairs nor validation have seen these questions.

Speed: one round's gradient against the forward pass of the same tokens, and against plain autograd,
which reads the prompts again and gives every weight of the model a gradient. CPU seconds; shared
machines are noisy, so ways alternate and the median counts. ``held``: what autograd keeps for the
backward pass of one part, the model's own weights aside. What the queue adds: benchmarks/learning_queue.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from factory import (
    Learning,
    Steering,
    SteeringVector,
    Target,
    build_vector,
    learn_vector,
    load_pairs,
    load_style,
    load_target,
)
from factory.config import load_settings
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.capability import EXACT_ANSWER_TOKENS, EXACT_QUESTIONS, are_right
from factory.evaluation.cell import Cell
from factory.evaluation.examiner import random_like
from factory.evaluation.probe import apply_cell
from factory.evaluation.relevance import relevance
from factory.evaluation.score import score
from factory.files import hash_of, sha256_of
from factory.learning.learn import learnable_pairs, read_part
from factory.learning.objectives import OBJECTIVES
from factory.learning.prompts import Prompts
from factory.learning.reading import ResponseReader
from factory.learning.schedule import Schedule
from factory.pairs.dataset import load_questions
from factory.pairs.pair import ContrastivePair
from factory.planning.specify import held_out_file, plan_evaluation
from factory.store import Store
from factory.target.download import BUILT_IN

ROOT = Path(__file__).resolve().parent.parent
MEANS = {  # what the sweep of config_cpu.yaml chose for the mean differences of the starter pairs
    "step_by_step_reasoning": Cell(5.5, "14-29", key_strength=0.8),
    "creative_explorer": Cell(5.5, "14-29", key_strength=0.8),
    "researcher_style": Cell(5.0, "22-29", key_strength=0.8),
}


# ---- quality


def measure_quality(arguments, target: Target, pairs: list[ContrastivePair], learning: Learning) -> dict:
    """Learn a vector, and let it and its peers answer."""
    style = load_style(arguments.style)
    mean = SteeringVector.load(arguments.mean) if arguments.mean else build_vector(pairs, target, layers="all")
    if arguments.vector:
        learned, cost = SteeringVector.load(arguments.vector), None
    else:
        learned, cost = learn(arguments, target, pairs, mean, learning)
    if arguments.save:
        learned.save(arguments.save)
    conditions = {
        "unsteered": (None, None),
        "prompted": (None, style.instruction()),
        "mean": (apply_cell(mean, MEANS[style.name]), None),
        **{f"learned x {s:g}": (Steering(learned, s, s), None) for s in arguments.strengths},
    }
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.answers or folder)
        found = {
            name: measure_answers(target, style, store, *condition, arguments)
            for name, condition in conditions.items()
            if not arguments.no_peers or name.startswith("learned")
        }
    return {
        "style": style.name,
        "learning": learned.extraction_config["learning"],
        "start": arguments.start,
        "shuffled": arguments.shuffled,
        "cost": cost,
        **learned.metadata["learning"],
        "conditions": found,
    }


def learn(arguments, target, pairs, mean, learning) -> tuple[SteeringVector, dict]:
    """The vector that the arguments ask for, and the seconds it took."""
    taught = shuffle(pairs) if arguments.shuffled else pairs
    within = apply_cell(mean, Cell(1.0, arguments.layers)).vector
    began, cpu = time.perf_counter(), time.process_time()
    learned = learn_vector(
        taught, target, start=start_of(arguments.start, within), learning=learning, layers=arguments.layers, after=tell
    )
    cost = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    return learned, cost


def start_of(name: str, mean: SteeringVector) -> SteeringVector | None:
    """Where learning begins: the mean, a random direction with its norms, or nothing."""
    return {"mean": mean, "random": random_like(mean), "zero": None}[name]


def shuffle(pairs: list[ContrastivePair]) -> list[ContrastivePair]:
    """The pairs with the responses of other questions: all that is left to learn is the style's form."""
    ordered = sorted(pairs, key=lambda pair: sha256_of(f"shuffled {pair.pair_id}"))
    others = [*ordered[1:], ordered[0]]
    return [
        replace(pair, positive_response=other.positive_response) for pair, other in zip(ordered, others, strict=True)
    ]


def measure_answers(target, style, store, steering, system, arguments) -> dict:
    """The figures of one condition."""
    questions = held_out_questions(others=arguments.choose)
    said = ask(target, Questioning(questions, arguments.tokens, steering, system), store)
    scored = score(said, style)
    exact = tuple(each.question for each in EXACT_QUESTIONS)
    right = are_right(ask(target, Questioning(exact, EXACT_ANSWER_TOKENS, steering, system), store))
    return {
        "n": scored.n,
        "share": scored.share,
        "interval": scored.interval,
        "loops": scored.loops,
        "exact": sum(right),
        "relevance": relevance_of(target, store, questions, said),
        "stock_phrases": scored.stock_phrases,
        "first": said[0],
    }


def held_out_questions(*, others: bool) -> tuple[str, ...]:
    """The held-out questions that measure, or all other held-out ones."""
    settings = load_settings(str(ROOT / "config_cpu.yaml"))
    measuring = plan_evaluation(settings).questions
    return tuple(q for q in load_questions(held_out_file(settings)) if q not in measuring) if others else measuring


def relevance_of(target, store, questions, said) -> float:
    """The mean relevance of answers: kept, as it costs as much as the answers."""
    key = f"relevance/{hash_of([target.name, target.dtype, questions, said])}.json"
    known = store.read_json(key)
    if known is None:
        known = statistics.fmean(found or 0.0 for found in relevance(target, questions, said))
        store.write_json(key, known)
    return known


def tell(state) -> None:
    """A line per validation, for whoever waits."""
    last = state.curve[-1]
    if last["validation"] is not None:
        Console(stderr=True).print(f"round {last['round']}: loss {last['loss']}, validation {last['validation']}")


# ---- speed


class Rereading(Prompts):
    """Prompts that are read again each time, with a gradient: what plain autograd does."""

    def read(self, question: str) -> torch.Tensor:
        return Prompts._forward.__wrapped__(self, question)


def measure_speed(arguments, target: Target, pairs: list[ContrastivePair], learning: Learning) -> dict:
    """CPU seconds of one round, three ways, and what the backward pass of a part keeps; no loop is read."""
    learning = learning.model_copy(update={"loop_penalty": 0.0})
    schedule = Schedule.of(learnable_pairs(pairs, target), learning)
    layers = range(target.n_layers)
    reader = ResponseReader(Prompts(target), layers, learning.response_tokens)
    plain = ResponseReader(Rereading(target), layers, learning.response_tokens)
    parts = [part for part in schedule.parts(0) if not part.validates]
    vector = torch.zeros(2, len(layers), *target.shape)
    ways = {
        "forward": lambda: [read_part(replace(part, validates=True), vector, reader, learning) for part in parts],
        "ours": lambda: [read_part(part, vector, reader, learning) for part in parts],
        "plain autograd": lambda: [plain_autograd(part, vector, plain, learning) for part in parts],
    }
    ways["forward"]()  # prompts are read once and kept, which is part of the idea
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "pairs": sum(len(part.pairs) for part in parts),
        "seconds": middle,
        "times_forward": {name: value / middle["forward"] for name, value in middle.items()},
        "held_mib": {
            "ours": held_mib(target, lambda: read_part(parts[0], vector, reader, learning)),
            "plain autograd": held_mib(target, lambda: plain_autograd(parts[0], vector, plain, learning)),
        },
    }


def plain_autograd(part, vector: torch.Tensor, reader: ResponseReader, learning: Learning) -> None:
    """Every weight of the model has a gradient, and so has the vector."""
    weights = list(reader.target.model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    learned = vector.clone().requires_grad_()
    OBJECTIVES[learning.objective](reader, part.pairs, learned, learning).backward()
    for weight in weights:
        weight.grad = None
        weight.requires_grad_(False)


def held_mib(target: Target, way) -> float:
    """MiB of tensors that autograd keeps for its backward pass, each storage once, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in target.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        way()
    return sum(kept.values()) / 2**20


# ---- the program


def run(arguments) -> dict:
    """Measure what was asked for, and put it into plain numbers."""
    torch.set_num_threads(arguments.threads)
    target = load_target(arguments.model, arguments.device, dtype=arguments.dtype)
    pairs = load_pairs(arguments.dataset or str(ROOT / f"datasets/{arguments.style}_pairs.jsonl"))
    learning = Learning.model_validate(dict(setting.split("=", 1) for setting in arguments.set))
    figures = {"model": target.name, "dtype": arguments.dtype, "threads": arguments.threads, "n_pairs": len(pairs)}
    if arguments.only != "quality":
        figures["speed"] = measure_speed(arguments, target, pairs, learning)
    if arguments.only != "speed":
        figures["quality"] = measure_quality(arguments, target, pairs, learning)
    return figures


def show(figures: dict) -> None:
    """The figures as tables for a person."""
    console = Console()
    if "speed" in figures:
        speed = figures["speed"]
        table = Table("way", "CPU s per round", "times forward", "held for backward, MiB")
        for name, seconds in speed["seconds"].items():
            held = speed["held_mib"].get(name)
            table.add_row(
                name, f"{seconds:.2f}", f"{speed['times_forward'][name]:.2f}", "" if held is None else f"{held:.0f}"
            )
        console.print(table)
    if "quality" in figures:
        quality = figures["quality"]
        console.print(f"{quality['style']}: {quality['rounds_taken']} rounds, best {quality['best_round']}")
        table = Table("", "in the style", "loops", "exact of 12", "relevance", "stock phrases")
        for name, row in quality["conditions"].items():
            table.add_row(
                name,
                f"{row['share']:.0%} ({row['interval'][0]:.0%} to {row['interval'][1]:.0%})",
                f"{row['loops']:.0%}",
                str(row["exact"]),
                f"{row['relevance']:.2f}",
                f"{row['stock_phrases']:.0%}",
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILT_IN)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument("--style", default="step_by_step_reasoning", choices=MEANS)
    parser.add_argument("--dataset", help="its pairs; default: the style's starter pairs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Learning")
    parser.add_argument("--layers", default="all", help="that learn")
    parser.add_argument("--start", choices=("mean", "zero", "random"), default="mean")
    parser.add_argument("--shuffled", action="store_true", help="control: learn responses of other questions")
    parser.add_argument("--mean", metavar="FILE", help="the mean difference; default: built from the pairs")
    parser.add_argument("--choose", action="store_true", help="ask the held-out questions that do not measure")
    parser.add_argument("--no-peers", action="store_true", help="let the learned vector alone answer")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--answers", metavar="FOLDER", help="keep answers here, for the next run")
    parser.add_argument("--vector", metavar="FILE", help="let this learned vector answer; nothing is learned")
    parser.add_argument("--save", metavar="FILE", help="keep the learned vector")
    parser.add_argument("--repeats", type=int, default=3, help="of each way whose speed is measured")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments)
    print(json.dumps(figures)) if arguments.json else show(figures)


if __name__ == "__main__":
    main()
