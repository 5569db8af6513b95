"""Which numbers are added to which slots of a paged KV cache, and when.

A prompt is read up to its last token; then the vector is added to the last cached positions, and the
last token is read, as :func:`factory.vector.steer.generate_batch` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from factory.vector.setting import Setting


@dataclass(frozen=True)
class Addition:
    """A vector times its strength.

    ``values`` and ``keys`` are float32 ``[n_layers, n_kv_heads, head_dim]``, of all heads of the model, keys
    at rotary position 0; None: nothing is added there.
    """

    layers: tuple[int, ...]
    values: Tensor | None
    keys: Tensor | None
    n_positions: int

    @classmethod
    def of(cls, setting: Setting) -> Addition:
        """What a setting adds."""
        vector = setting.vector
        return cls(
            tuple(vector.layer_indices),
            setting.strength * vector.value_vector if setting.strength else None,
            setting.key_strength * vector.key_vector if setting.key_strength else None,
            setting.n_positions,
        )


@dataclass(frozen=True)
class Edit:
    """What is added for one request, once its prompt is in the cache up to ``end``.

    ``slots`` are those of the last positions before ``end``, as many as the widest addition needs; a slot
    is a block's number times the size of a block, plus the place in it.
    """

    additions: tuple[Addition, ...]
    slots: tuple[int, ...]
    end: int

    def window(self, addition: Addition) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The slots and positions that one of its additions is added to."""
        slots = self.slots[-addition.n_positions :]
        return slots, tuple(range(self.end - len(slots), self.end))


def first_edited(end: int, additions: Sequence[Addition]) -> int:
    """The first position that is edited, of a prompt read up to ``end``."""
    return max(0, end - max(addition.n_positions for addition in additions))


def slots_of(block_ids: Sequence[int], block_size: int, first: int, end: int) -> tuple[int, ...]:
    """The slots of positions ``first`` to ``end``, that one excluded."""
    return tuple(
        block_ids[position // block_size] * block_size + position % block_size for position in range(first, end)
    )


def shard_of(n_heads: int, n_ranks: int, rank: int) -> slice:
    """The KV heads that a rank of tensor parallelism holds; where there are more ranks than heads, they are repeated.

    Source: vLLM's ``QKVParallelLinear``, which splits or repeats the heads so.
    """
    if n_heads >= n_ranks:
        size = n_heads // n_ranks
        return slice(rank * size, (rank + 1) * size)
    first = rank // (n_ranks // n_heads)
    return slice(first, first + 1)
