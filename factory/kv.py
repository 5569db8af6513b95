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
from factory.prefix import Segment

SharedStates = dict[int, dict[Segment, tuple[Tensor, Tensor]]]  # by layer and segment: keys and values


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


@dataclass(frozen=True)
class Seen:
    """The keys (or values) that the segments of a pass attend to.

    ``states`` holds for each segment those of its text up to its end,
    ``[1, n_kv_heads, segment.stop, head_dim]``; the last ``lengths`` of them are new. ``hidden``
    ``[longest, longest]``, added to scores, hides what comes later in a text.
    """

    states: list[Tensor]
    lengths: list[int]
    hidden: Tensor


class LastLayerRead(Exception):
    """Ends a forward pass as soon as the last needed layer has been read."""


class ReadingCache(Cache):
    """The cache of one forward pass over segments that stand behind each other in a single row.

    It keeps the states at ``columns`` of the row for the layers in ``layers``, and ends the pass at the
    last of them. Each layer's attention gets :class:`Seen`; without a ``hidden`` tensors as from any cache,
    and the pass is then over a single segment. ``shared`` outlives the pass: the states of segments that
    others continue.
    """

    def __init__(
        self,
        layers: Sequence[int],
        segments: Sequence[Segment],
        columns: Tensor,
        *,
        shared: SharedStates,
        hidden: Tensor | None,
    ) -> None:
        super().__init__(layers=[])
        self.wanted = frozenset(layers)
        self.last = max(layers)
        self.segments = segments
        self.lengths = [len(segment.ids) for segment in segments]
        self.columns = columns
        self.shared = shared
        self.hidden = hidden
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Take layer ``layer_idx``'s new states ``[1, n_kv_heads, n_tokens, head_dim]``."""
        if layer_idx in self.wanted:  # [n_reads, n_kv_heads, head_dim]
            self.read[layer_idx] = (
                key_states[0, :, self.columns].transpose(0, 1).float(),
                value_states[0, :, self.columns].transpose(0, 1).float(),
            )
        if layer_idx == self.last:
            raise LastLayerRead
        keys, values = self._by_segment(key_states, value_states, layer_idx)
        if self.hidden is None:
            return keys[0], values[0]
        return Seen(keys, self.lengths, self.hidden), Seen(values, self.lengths, self.hidden)

    def _by_segment(self, keys: Tensor, values: Tensor, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each segment's states behind those of the segments that it continues."""
        shared = self.shared.setdefault(layer, {})
        all_keys, all_values = list(keys.split(self.lengths, 2)), list(values.split(self.lengths, 2))
        for number, segment in enumerate(self.segments):
            if segment.parent is not None:
                keys_before, values_before = shared[segment.parent]
                all_keys[number] = torch.cat([keys_before, all_keys[number]], dim=2)
                all_values[number] = torch.cat([values_before, all_values[number]], dim=2)
            if segment.text is None:
                shared[segment] = all_keys[number].clone(), all_values[number].clone()  # the row itself can go
        return all_keys, all_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens come before the new ones, for a model that makes its own mask."""
        return self.segments[0].start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a query sees, for a model that makes its own mask."""
        return self.get_seq_length() + query_length, 0


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
