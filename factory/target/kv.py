"""The KV cache: reading states out of it, writing a vector into it, and its rotary positions.

The only module that knows the cache classes of transformers. A model calls ``cache.update`` once
a layer with that layer's new keys and values, so a cache of our own can read the states of any
model, keep what texts share, and stop the forward pass once the last needed layer is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from factory.errors import TargetError


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


def add_to_cache(
    cache: Cache, layers: Sequence[int], keys: Tensor | None, values: Tensor | None, n_positions: int = 1
) -> None:
    """Add a vector to the last ``n_positions`` cached positions, in place.

    ``values`` is ``[n_layers, n_kv_heads, head_dim]``; ``keys`` is
    ``[batch, n_positions, n_layers, n_kv_heads, head_dim]``, rotated forward to its positions.
    """
    for index, layer in enumerate(layers):
        states: Any = cache.layers[layer]
        window = slice(states.values.shape[2] - n_positions, None)
        if values is not None:  # one vector for every row and position
            states.values[:, :, window] += values[index][None, :, None].to(states.values)
        if keys is not None:  # [batch, n_kv_heads, n_positions, head_dim]
            states.keys[:, :, window] += keys[:, :, index].transpose(1, 2).to(states.keys)


class Rotation:
    """A model's rotary position embedding, applied to cached keys in either direction.

    Source: RoFormer (arXiv 2104.09864), in the half-split form of Llama. A model without rotary
    embedding (GPT-2's learned positions) gets the identity. Scaled variants (YaRN) multiply sine
    and cosine by a factor, which the way back divides out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.embedding: Any = getattr(model.base_model, "rotary_emb", None)
        self.layer_types: Any = getattr(model.config.get_text_config(), "layer_types", None)

    def turn(self, keys: Tensor, positions: Tensor, layers: Sequence[int], *, back: bool) -> Tensor:
        """Rotate ``keys`` [n, n_layers, n_kv_heads, head_dim] to ``positions`` [n], or back to 0."""
        if self.embedding is None:
            return keys
        turned = keys.clone()
        for index, layer in enumerate(layers):
            cos, sin = self._angles(keys, positions, layer)  # [n, 1, rotary_dim]
            width = cos.shape[-1]
            part = keys[:, index, :, :width]  # [n, n_kv_heads, rotary_dim]
            scale = (cos.square() + sin.square()) if back else 1.0
            turned[:, index, :, :width] = (part * cos + _rotate_half(part) * (-sin if back else sin)) / scale
        return turned

    def _angles(self, like: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        arguments: list[Any] = [like.float(), positions[None]]
        if self._differs_by_layer():
            arguments.append(self.layer_types[layer])
        cos, sin = self.embedding(*arguments)
        return cos[0].float()[:, None], sin[0].float()[:, None]

    def _differs_by_layer(self) -> bool:
        """Whether local and global layers turn at different speeds (Gemma 3)."""
        return self.layer_types is not None and hasattr(self.embedding, "layer_types")


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def check_cache_support(config: PreTrainedConfig, name: str) -> None:
    """Refuse models whose layers do not all keep keys and values of every token.

    Raises:
        TargetError: the model has state-space or linear-attention layers, or shares its cache
            between layers; names the reason.
    """
    text = config.get_text_config()
    odd = {kind for kind in getattr(text, "layer_types", None) or () if "attention" not in kind or "linear" in kind}
    if odd:
        raise TargetError(
            f"{name}: layers of type {', '.join(sorted(odd))} keep no keys and values, so there is nothing "
            "to steer. Choose a model with attention in every layer."
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise TargetError(f"{name}: layers share their KV cache, which is not supported. Choose another model.")


def longest_window(config: PreTrainedConfig) -> int | None:
    """How many tokens back the narrowest attention layer sees; None when every layer sees all."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if not window or getattr(text, "use_sliding_window", True) is False:
        return None
    return int(window) if kinds is None or "sliding_attention" in kinds else None
