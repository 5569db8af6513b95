"""Gradient checkpointing: layers that keep nothing for the backward pass but their input, and run again in it.

The trade is Chen et al.'s (arXiv 1604.06174): one more forward pass for the memory of one layer in place of
all. transformers' own switch leaves out the cache, behind which responses are read here; so a layer is
run on a copy of its cache, which a second run finds as the first did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import Module, ModuleList
from torch.utils.checkpoint import checkpoint

from factory.target.kv import unshared
from factory.target.model import Target

MEMORY = 2 * 2**30  # bytes that a backward pass may keep, where the device does not say what is free
HIDDEN, INNER = 8, 3  # numbers kept per token and layer, in widths of the hidden state and of the MLP


def held_bytes(target: Target, n_rows: int, n_tokens: int) -> int:
    """About how much a pass over ``n_rows`` texts of ``n_tokens`` tokens keeps for its backward pass.

    Within a sixth of what autograd counted on SmolLM2-135M (benchmarks/results.md).
    """
    config = target.model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_layer = (HIDDEN * config.hidden_size + INNER * inner) * target.model.dtype.itemsize
    per_token = target.n_layers * per_layer + 4 * config.vocab_size  # log-probabilities are float32
    return int(n_rows * n_tokens * per_token)


def bound_of(device: torch.device) -> int:
    """How much a backward pass may keep: half of what is free on a CUDA device."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else MEMORY


@contextmanager
def layers_run_again(target: Target) -> Iterator[None]:
    """Keep only the input of each layer; the gradient is the same. A model whose layers are no list is left alone."""
    layers = _layers_of(target)
    usual = [layer.forward for layer in layers]
    for layer, forward in zip(layers, usual, strict=True):
        layer.forward = partial(_forward, forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, usual, strict=True):
            layer.forward = forward


def _layers_of(target: Target) -> list[Module]:
    lists = (each for each in target.model.base_model.modules() if isinstance(each, ModuleList))
    return next((list(each) for each in lists if len(each) == target.n_layers), [])


def _forward(usual: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward pass, run again when its gradient is asked for."""

    def run(*args: Any) -> Any:
        named = {name: unshared(value) for name, value in kwargs.items()}
        return usual(*map(unshared, args), **named)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn: no dropout
