"""Speed of extraction against two peers and the machine's own bound, in one run.

    python benchmarks/extraction.py --json
    python benchmarks/extraction.py --layers all --recipe response_mean --n-tokens 8
    python benchmarks/extraction.py --device cuda --config-of deepseek-r1-distill-qwen-7b --random-weights

The same pairs are read, alternating, by
  naive             one text at a time through the whole model, hidden states kept;
  steering-vectors  its batches and hooks on v_proj (values alone);
  ours              in float32 and bfloat16.
Figures are CPU seconds on a CPU (shared machines are noisy), wall seconds elsewhere. ``useful`` is
the arithmetic that cannot be left out, shared beginnings counted once, against the matrix products
of the model's own shapes measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from factory import Recipe, Target, load_pairs, load_target
from factory.extraction.extract import extract_rendered, render_batch
from factory.extraction.prefix import share_prefixes
from factory.pairs.pair import cut_batches
from factory.target.download import BUILT_IN
from factory.target.layers import parse_layers

CONFIGS = {
    "deepseek-r1-distill-qwen-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}


@dataclass
class Clock:
    """CPU seconds of this process, or wall seconds around a synchronised device."""

    device: str

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def time(self, function) -> float:
        start = self.now()
        function()
        return self.now() - start


def load(arguments, dtype: str) -> Target:
    """The target of the benchmark; random weights take the built-in model's tokenizer."""
    if not arguments.config_of:
        return load_target(arguments.model, arguments.device, dtype=dtype)
    small = load_target(BUILT_IN, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(str(Path(small.tokenizer.name_or_path))).save_pretrained(folder)
        config = Qwen2Config(**CONFIGS[arguments.config_of], max_position_embeddings=32768)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        with torch.device(arguments.device):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    return Target(arguments.config_of, "random", model.eval().requires_grad_(False), small.tokenizer)


@torch.inference_mode()
def naive(target: Target, batches, layers) -> torch.Tensor:
    """One text at a time, everything computed; differences of values [n_pairs, n_layers, heads, dim]."""
    differences = []
    for batch in batches:
        for text in batch.renderings:
            states = []
            for ids, positions in (
                (text.positive_ids, text.positive_positions),
                (text.negative_ids, text.negative_positions),
            ):
                output = target.model(input_ids=target.tensor([ids]), output_hidden_states=True, use_cache=True)
                cached = [output.past_key_values.layers[layer].values[0][:, positions].mean(1) for layer in layers]
                states.append(torch.stack(cached).float().cpu())
            differences.append(states[0] - states[1])
    return torch.stack(differences)


@torch.inference_mode()
def peer(target: Target, batches, layers) -> None:
    """steering-vectors: padded batches of 8 through the whole model, hooks on v_proj."""
    from steering_vectors import record_activations

    config = {"self_attn": "model.layers.{num}.self_attn.v_proj"}
    for batch in batches:
        texts = [ids for text in batch.renderings for ids in (text.positive_ids, text.negative_ids)]
        for start in range(0, len(texts), 8):
            part = texts[start : start + 8]
            longest = max(map(len, part))
            ids = target.tensor([[0] * (longest - len(row)) + row for row in part])
            mask = target.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in part])
            with record_activations(target.model, "self_attn", layer_config=config, layer_nums=layers):
                target.model(input_ids=ids, attention_mask=mask)


def ours(target: Target, batches, layers) -> torch.Tensor:
    """The factory's own extraction; differences of values as above."""
    return torch.cat([extract_rendered(batch, target, layers).values for batch in batches])


def useful_flops(target: Target, batches, layers) -> float:
    """Products that any way must compute: each distinct beginning once, up to the last layer's K and V."""
    config = target.model.config
    heads, (kv_heads, dim) = config.num_attention_heads, target.shape
    per_layer = (
        config.hidden_size * dim * (2 * heads + 2 * kv_heads) + 3 * config.hidden_size * config.intermediate_size
    )
    last = max(layers)
    total = 0.0
    for batch in batches:
        texts = [ids for text in batch.renderings for ids in (text.positive_ids, text.negative_ids)]
        reads = [at[0] for text in batch.renderings for at in (text.positive_positions, text.negative_positions)]
        for segment in share_prefixes(texts, reads):
            n = len(segment.ids)
            seen = n * segment.start + n * (n + 1) / 2  # keys that its queries look at
            total += last * (2 * n * per_layer + 4 * seen * heads * dim)
            total += 2 * n * config.hidden_size * dim * 2 * kv_heads
    return total


def measure_peak(target: Target, clock: Clock) -> float:
    """FLOP/s of the model's own matrix shapes on 1,024 tokens."""
    layer = target.model.base_model.layers[0]
    weights = [module.weight for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    inputs = [torch.randn(1024, w.shape[1], dtype=w.dtype, device=w.device) for w in weights]

    def products() -> None:
        for weight, tokens in zip(weights, inputs, strict=True):
            torch.nn.functional.linear(tokens, weight)

    products()
    repeats = 10
    seconds = min(clock.time(lambda: [products() for _ in range(repeats)]) for _ in range(3))
    return repeats * sum(2 * 1024 * w.numel() for w in weights) / seconds


def run(arguments) -> dict:
    """Measure everything, alternating, and put it into plain numbers."""
    torch.set_num_threads(arguments.threads)
    clock = Clock(arguments.device)
    pairs = load_pairs(arguments.dataset)[: arguments.pairs]
    recipe = Recipe(arguments.recipe, n_tokens=arguments.n_tokens)
    targets = {dtype: load(arguments, dtype) for dtype in arguments.dtypes.split(",")}
    first = next(iter(targets.values()))
    layers = parse_layers(arguments.layers, first.n_layers)
    batches = [render_batch(batch, first, recipe) for batch in cut_batches(pairs)]
    candidates = {"naive": lambda: naive(first, batches, layers)}
    if not arguments.no_peer:
        candidates["steering-vectors"] = lambda: peer(first, batches, layers)
    candidates |= {f"ours {dtype}": lambda t=target: ours(t, batches, layers) for dtype, target in targets.items()}
    warm_up = [render_batch(cut_batches(pairs)[0][:2], first, recipe)]
    for target in targets.values():
        ours(target, warm_up, layers)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, torch.Tensor] = {}
    for _ in range(arguments.rounds):
        for name, candidate in candidates.items():
            seconds[name].append(clock.time(lambda n=name, c=candidate: results.__setitem__(n, c())))
    n_pairs = sum(len(batch.pair_ids) for batch in batches)
    return {
        "model": first.name,
        "device": arguments.device,
        "threads": arguments.threads,
        "recipe": arguments.recipe,
        "layers": arguments.layers,
        "pairs": n_pairs,
        "tokens": sum(len(i) for b in batches for t in b.renderings for i in (t.positive_ids, t.negative_ids)),
        "figures": {
            name: _figures(name, statistics.median(times), seconds, n_pairs, results) for name, times in seconds.items()
        },
        "useful": {dtype: _useful(t, dtype, batches, layers, seconds, clock) for dtype, t in targets.items()},
        "peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if arguments.device == "cuda" else None,
    }


def _figures(name: str, middle: float, seconds: dict, n_pairs: int, results: dict) -> dict:
    figures = {
        "pairs_per_second": n_pairs / middle,
        "times_naive": statistics.median(seconds["naive"]) / middle,
    }
    if name.startswith("ours"):
        a, b = results[name].double(), results["naive"].double()
        figures["largest_difference"] = float((a - b).abs().max())
        figures["cosine"] = float(
            torch.nn.functional.cosine_similarity(a.mean(0).flatten(), b.mean(0).flatten(), dim=0)
        )
    return figures


def _useful(target: Target, dtype: str, batches, layers, seconds: dict, clock: Clock) -> dict:
    peak = measure_peak(target, clock)
    rate = useful_flops(target, batches, layers) / statistics.median(seconds[f"ours {dtype}"])
    return {"peak_gflops": peak / 1e9, "useful_gflops": rate / 1e9, "fraction_of_peak": rate / peak}


def show(figures: dict) -> None:
    """The figures as a table for a person."""
    console = Console()
    console.print(", ".join(f"{key} {figures[key]}" for key in ("model", "recipe", "layers", "pairs", "tokens")))
    table = Table("way", "pairs/s", "times naive", "largest difference", "cosine")
    for name, row in figures["figures"].items():
        extra = [f"{row['largest_difference']:.1e}", f"{row['cosine']:.6f}"] if "cosine" in row else ["", ""]
        table.add_row(name, f"{row['pairs_per_second']:.2f}", f"{row['times_naive']:.2f}", *extra)
    console.print(table)
    for dtype, row in figures["useful"].items():
        console.print(
            f"{dtype}: useful {row['useful_gflops']:.0f} of {row['peak_gflops']:.0f} GFLOP/s, "
            f"{row['fraction_of_peak']:.2f} of the peak"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILT_IN)
    parser.add_argument("--config-of", choices=CONFIGS)
    parser.add_argument("--random-weights", action="store_true", help="with --config-of; the only way it is built")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", default="8-15")
    parser.add_argument("--recipe", default="fewshot")
    parser.add_argument("--n-tokens", type=int)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", default="datasets/step_by_step_reasoning_pairs.jsonl")
    parser.add_argument("--no-peer", action="store_true", help="leave steering-vectors out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = run(arguments)
    print(json.dumps(figures)) if arguments.json else show(figures)


if __name__ == "__main__":
    main()
