"""How the target model is run for reading: what a forward pass leaves out, how it attends, how exactly it adds.

All of it holds inside :func:`reading` only; outside, the model is as it was. Modules are known by the
names that transformers gives them; a model that lacks them is run as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from factory.target import Target

BLOCK = 128  # queries that attend at once: fewer cost more calls, more cost products with keys that they must not see
BLOCKWISE = "blockwise"  # our attention's name in transformers


@contextmanager
def reading(target: Target, last_layer: int) -> Iterator[None]:
    """Run forward passes that end at the keys and values of ``last_layer``."""
    with ExitStack() as stack:
        stack.enter_context(_no_queries_at(target, last_layer))
        stack.enter_context(_blockwise_attention(target))
        stack.enter_context(_exact_sums(target))
        yield


@contextmanager
def _no_queries_at(target: Target, layer: int) -> Iterator[None]:
    """Let ``layer`` make keys and values alone: nobody asks for what its queries would find.

    A model that projects all three at once (GPT-2) does as always.
    """
    layers = getattr(target.model.base_model, "layers", None)
    projection: Any = layers and getattr(getattr(layers[layer], "self_attn", None), "q_proj", None)
    if projection is None:
        yield
        return

    def nothing(hidden: Tensor) -> Tensor:  # [batch, n_tokens, hidden] -> zeros [batch, n_tokens, n_heads * head_dim]
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], projection.out_features)

    usual = projection.forward
    projection.forward = nothing
    try:
        yield
    finally:
        projection.forward = usual


def needs_mask(target: Target) -> bool:
    """Whether the attention in force must be told who sees whom even where it is plainly causal.

    Elsewhere no mask is better: a GPU then takes its causal kernel.
    """
    return bool(target.model.config._attn_implementation == BLOCKWISE)


@contextmanager
def _blockwise_attention(target: Target) -> Iterator[None]:
    """Attend by :func:`attend_blockwise` on a CPU, whose own kernel computes every product that a mask then hides."""
    usual = target.model.config._attn_implementation
    if target.device.type != "cpu" or usual != "sdpa":
        yield
        return
    AttentionInterface.register(BLOCKWISE, attend_blockwise)
    target.model.set_attn_implementation(BLOCKWISE)
    try:
        yield
    finally:
        target.model.set_attn_implementation(usual)


def attend_blockwise(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **unused: Any,  # what transformers tells every attention: dropout, windows
) -> tuple[Tensor, None]:
    """Causal attention, a block of queries at a time, each on the keys up to its own end.

    ``query`` is ``[batch, n_heads, n_tokens, head_dim]``; ``key`` and ``value`` hold the prefix and
    the new tokens, ``[batch, n_kv_heads, prefix + n_tokens, head_dim]``; ``attention_mask``, added to
    the scores, hides what comes later. Returns ``[batch, n_tokens, n_heads, head_dim]``.
    """
    n_tokens, n_keys = query.shape[2], key.shape[2]
    output = query.new_empty(query.shape[0], n_tokens, *query.shape[1::2])
    for start in range(0, n_tokens, BLOCK):
        stop = min(start + BLOCK, n_tokens)
        seen = n_keys - n_tokens + stop
        attended = scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, :seen],
            value[:, :, :seen],
            attn_mask=attention_mask[..., start:stop, :seen],
            scale=scaling,
            enable_gqa=True,
        )
        output[:, start:stop] = attended.transpose(1, 2)
    return output, None


def stream_dtype(target: Target) -> torch.dtype:
    """The dtype in which layers add up what they find, and in which embeddings must come.

    float32 for a plain bfloat16 model: where a layer's output is added to a much larger stream, 8
    bits of mantissa lose the small differences that a vector is made of. The model's own dtype
    otherwise: quantised layers do not follow autocast.
    """
    return torch.float32 if target.dtype == "bfloat16" else target.model.dtype


def _exact_sums(target: Target) -> AbstractContextManager[Any]:
    """Matrix products in the model's own dtype, sums between layers in that of :func:`stream_dtype`."""
    model_dtype = target.model.dtype
    exact = stream_dtype(target) != model_dtype
    return torch.autocast(target.device.type, dtype=model_dtype) if exact else nullcontext()
