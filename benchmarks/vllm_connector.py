"""vLLM with the connector: steered by different vectors against unsteered, in one engine and one run.

Run it with the Python of vLLM's environment (docs/serving.md), one process, as CPU seconds are those of this one::

    VLLM_ENABLE_V1_MULTIPROCESSING=0 PYTHONPATH=. vllm-env/bin/python benchmarks/vllm_connector.py --model FOLDER

Ways alternate within each round. Ratios are those of a round, and the median of all rounds is told: of tokens per
second, and of tokens per CPU second, which other programs on the machine disturb less; of a first token the least.
Speed does not depend on what a vector holds, so random ones serve.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from factory.vector.vector import SteeringVector

if TYPE_CHECKING:  # what it logs, and where, is settled when it is imported
    from vllm import LLM

WAYS = ("unsteered", "one vector", "different vectors")
N_VECTORS = 16


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of this process's CPU time."""

    wall: float
    cpu: float


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _options()
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # the table is what a program reads
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(options, Path(folder))
        rows = [_measured(engine, clients, options) for clients in options.clients]
    if options.json:
        print(json.dumps({"model": options.model, "tokens": options.tokens, "rows": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['clients']} at once")
        for way in WAYS:
            print(
                f"  {way:18} {row['tokens_per_second'][way]:8.1f} tokens/s, {row['ratio'][way]:.3f} of unsteered "
                f"({row['cpu_ratio'][way]:.3f} by CPU); first token {row['first_token_ms'][way]:.1f} ms a request "
                f"({row['first_token_cpu_ms'][way]:.1f} of CPU)"
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _engine(options: argparse.Namespace, folder: Path) -> LLM:
    from transformers import AutoConfig
    from vllm import LLM

    config = AutoConfig.from_pretrained(options.model)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (2, config.num_hidden_layers, config.num_key_value_heads, head_size)
    for number in range(N_VECTORS):
        keys, values = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(number))
        layers = list(range(config.num_hidden_layers))
        SteeringVector(f"v{number}", keys, values, layers, options.model).save(folder / f"v{number}.safetensors")
    return LLM(
        model=options.model,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=options.prompt + options.tokens + 16,
        max_num_seqs=max(options.clients),
        enable_prefix_caching=False,  # each round reads its prompts again
        kv_transfer_config={
            "kv_connector": "SteeringConnector",
            "kv_connector_module_path": "factory.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"vectors": str(folder)},
        },
    )


def _measured(engine: LLM, clients: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of whole answers, and the time to a first token, each way."""
    whole: dict[str, list[Took]] = {way: [] for way in WAYS}
    first: dict[str, list[Took]] = {way: [] for way in WAYS}
    for number in range(options.rounds + 1):
        for way in WAYS if number % 2 else WAYS[::-1]:
            answers = _timed(engine, way, clients, options.prompt, options.tokens)
            beginnings = _timed(engine, way, clients, options.prompt, 1)
            if number:  # the first round warms up
                whole[way].append(answers)
                first[way].append(beginnings)
    made = clients * options.tokens
    return {
        "clients": clients,
        "tokens_per_second": {way: statistics.median(made / one.wall for one in whole[way]) for way in WAYS},
        "ratio": {way: _ratio(whole["unsteered"], whole[way], "wall") for way in WAYS},
        "cpu_ratio": {way: _ratio(whole["unsteered"], whole[way], "cpu") for way in WAYS},
        "first_token_ms": {way: 1000 * min(one.wall for one in first[way]) / clients for way in WAYS},
        "first_token_cpu_ms": {way: 1000 * min(one.cpu for one in first[way]) / clients for way in WAYS},
    }


def _ratio(plain: list[Took], steered: list[Took], kind: str) -> float:
    """How fast the steered way is by the unsteered one, the median of rounds."""
    return statistics.median(getattr(one, kind) / getattr(two, kind) for one, two in zip(plain, steered, strict=True))


def _timed(engine: LLM, way: str, clients: int, n_prompt: int, n_tokens: int) -> Took:
    """Seconds that ``clients`` requests take together; an unsteered one has the neutral token too."""
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [100 + (7 * at + client) % 300 for at in range(n_prompt)]} for client in range(clients)
    ]
    asked = [
        {"unsteered": [], "one vector": [{"vector": "v0"}], "different vectors": [{"vector": f"v{client % N_VECTORS}"}]}
        for client in range(clients)
    ]
    sampling = [
        SamplingParams(
            temperature=0,
            max_tokens=n_tokens,
            ignore_eos=True,
            extra_args={"kv_transfer_params": {"steering": one[way]}},
        )
        for one in asked
    ]
    started, cpu = time.perf_counter(), time.process_time()
    engine.generate(prompts, sampling, use_tqdm=False)
    return Took(time.perf_counter() - started, time.process_time() - cpu)


if __name__ == "__main__":
    main()
