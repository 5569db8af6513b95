"""The KV cache: reading states out of it, writing a vector into it, and which models have one.

The only module that knows the cache classes of transformers. A model calls ``cache.update`` once
a layer with that layer's new keys and values, so a cache of our own can read the states of any
model, keep what texts share, and stop the forward pass once the last needed layer is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache


@dataclass(frozen=True)
class KVCache:
    """Keys and values at chosen layers, for one position (or averaged over several).

    ``keys`` and ``values`` are float32 ``[n_layers, n_kv_heads, head_dim]``; keys are rotated
    back to position 0 where the model rotates them.
    """

    keys: Tensor
    values: Tensor

    def __sub__(self, other: KVCache) -> KVCache:
        return KVCache(self.keys - other.keys, self.values - other.values)

    def is_finite(self) -> bool:
        """Whether every number is an ordinary one."""
        return bool(self.keys.isfinite().all() and self.values.isfinite().all())


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache for ``model.generate``."""
    return DynamicCache(config=model.config)


def unshared(argument: Any) -> Any:
    """A copy of a cache, whose tensors are shared until a layer replaces its own; any other argument as it is."""
    if not isinstance(argument, Cache):
        return argument
    kept = copy(argument)
    kept.layers = [copy(layer) for layer in argument.layers]
    return kept


class WatchedCache(DynamicCache):
    """A cache that tells each layer's new states."""

    def __init__(self, seen: Callable[[int, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.seen = seen

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Tell layer ``layer_idx``'s new states, and keep them."""
        self.seen(layer_idx, key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@torch.inference_mode()
def read_states_of(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Every layer's keys and values of the texts ``ids`` [n, n_tokens], as the model itself reads them.

    Each is ``[n, n_kv_heads, n_tokens, head_dim]``; ``inputs`` is what the model is told besides.
    """
    states: dict[int, tuple[Tensor, Tensor]] = {}
    cache = WatchedCache(lambda layer, keys, values: states.update({layer: (keys, values)}))
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
    return states


def add_to_cache(
    cache: Cache, layers: Sequence[int], keys: Tensor | None, values: Tensor | None, n_positions: int = 1
) -> None:
    """Add a vector to the last ``n_positions`` cached positions, in place; to all, where there are fewer.

    ``values`` is ``[n_layers, n_kv_heads, head_dim]``; ``keys`` is
    ``[batch, n_positions, n_layers, n_kv_heads, head_dim]``, rotated forward to its positions.
    """
    for index, layer in enumerate(layers):
        states: Any = cache.layers[layer]
        window = slice(max(0, states.values.shape[2] - n_positions), None)
        if values is not None:  # one vector for every row and position
            states.values[:, :, window] += values[index][None, :, None].to(states.values)
        if keys is not None:  # [batch, n_kv_heads, n_positions, head_dim]
            states.keys[:, :, window] += keys[:, :, index].transpose(1, 2).to(states.keys)


def reading_limits(config: PreTrainedConfig) -> dict[str, int]:
    """How many tokens of a text are read as the whole model reads them, by what limits them.

    A narrower layer sees less than the text (a sliding window, chunks); a rope that changes with the
    length of a pass (longrope, dynamic) would turn all texts of a pass by the longest.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    limits = {"positions": getattr(text, "max_position_embeddings", None)}
    if getattr(text, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds):
        limits["sliding window"] = getattr(text, "sliding_window", None)
    if kinds is None or "chunked_attention" in kinds:
        limits["attention chunks"] = getattr(text, "attention_chunk_size", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits["short rope factors"] = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
    return {why: int(limit) for why, limit in limits.items() if limit}
