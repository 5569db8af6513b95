"""How the target model is run for reading: what a forward pass leaves out, how it attends, how exactly it adds.

All of it holds inside :func:`reading` only; outside, the model is as it was. Modules are known by the
names that transformers gives them; a model that lacks them is run as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from factory.extraction.cache import Seen
from factory.target.model import Target

BLOCK = 64  # queries that attend at once: fewer cost more calls, more cost products with keys that they must not see
BLOCKWISE = "blockwise"


@contextmanager
def reading(target: Target, last_layer: int, *, packed: bool) -> Iterator[None]:
    """Run forward passes that end at the keys and values of ``last_layer``; ``packed``: over several segments."""
    with ExitStack() as stack:
        stack.enter_context(_no_queries_at(target, last_layer))
        if packed:
            stack.enter_context(_attention_by_segment(target))
        stack.enter_context(_exact_sums(target))
        yield


@contextmanager
def _no_queries_at(target: Target, layer: int) -> Iterator[None]:
    """Skip the query projection of ``layer``, the last that is read: the pass ends at its keys and values.

    A model that projects all three at once (GPT-2), or in a way of its own (Moshi), does as always.
    """
    layers = getattr(target.model.base_model, "layers", None)
    projection: Any = layers and getattr(getattr(layers[layer], "self_attn", None), "q_proj", None)
    if not hasattr(projection, "out_features"):
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


def attention_of_a_segment(target: Target) -> str:
    """What attends within a segment: the model's usual attention, or ours in the place of torch's on a CPU."""
    usual: str = target.model.config._attn_implementation
    return BLOCKWISE if usual == "sdpa" and target.device.type == "cpu" else usual


@contextmanager
def _attention_by_segment(target: Target) -> Iterator[None]:
    """Let each segment of a pass attend to its own text alone."""
    usual, each = target.model.config._attn_implementation, attention_of_a_segment(target)
    name = f"{each}, by segment"
    AttentionInterface.register(name, partial(attend_by_segment, usual=each))
    target.model.set_attn_implementation(name)
    try:
        yield
    finally:
        target.model.set_attn_implementation(usual)


def attend_by_segment(
    module: torch.nn.Module,
    query: Tensor,
    key: Seen,
    value: Seen,
    attention_mask: None,
    *,
    usual: str,
    **options: Any,  # what transformers tells every attention: scaling, soft cap, windows
) -> tuple[Tensor, None]:
    """Causal attention of segments that stand behind each other in one row, each on its own text.

    ``query`` is ``[1, n_heads, n_tokens, head_dim]``; ``usual`` names the attention used for each
    segment. Returns ``[1, n_tokens, n_heads, head_dim]``.
    """
    attend = _attention_of(module, usual)
    attended = []
    for part, keys, values in zip(query.split(key.lengths, 2), key.states, value.states, strict=True):
        n_tokens, stop = part.shape[2], keys.shape[2]
        plain = usual == "sdpa" and n_tokens == stop  # with attn_mask=None torch uses its causal kernel
        mask = None if plain else key.hidden[None, None, stop - n_tokens : stop, :stop]
        attended.append(attend(module, part, keys, values, mask, **options)[0])
    return torch.cat(attended, dim=1), None


def _attention_of(module: torch.nn.Module, name: str) -> Any:
    if name == BLOCKWISE:
        return attend_blockwise
    eager: Any = vars(sys.modules[type(module).__module__])["eager_attention_forward"]  # each family has its own
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def attend_blockwise(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **unused: Any,  # dropout, windows
) -> tuple[Tensor, None]:
    """Causal attention, a block of queries at a time, each on the keys up to its own end.

    Torch's own kernel for CPUs computes every product that a mask then hides.

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
    """The dtype of the residual stream, and of the embeddings that start it.

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
