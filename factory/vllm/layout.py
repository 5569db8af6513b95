"""Where a paged KV cache keeps the numbers of a token, found out by writing known ones.

Every attention backend packs a block in its own way, some by the processor's instructions. So nothing is
assumed but that a cache's first dimension counts blocks: the backend's own write is called on block 0, which
vLLM never reads, and where each number went is read off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.errors import ServingError

BASE = 128  # numbers are written digit by digit: bfloat16 holds whole ones up to 256

Write = Callable[[Tensor, Tensor, Tensor], None]  # keys, values [n, n_kv_heads, head_dim], slots [n]


@dataclass(frozen=True)
class BlockLayout:
    """Flat places within a block, each ``[block_size, n_kv_heads, head_dim]``."""

    keys: Tensor
    values: Tensor

    def add(self, cache: Tensor, slots: Tensor, keys: Tensor | None, values: Tensor | None) -> None:
        """Add to ``cache`` [n_blocks, ...], in place.

        ``slots`` is [n], ``keys`` and ``values`` [n, n_kv_heads, head_dim]. What comes twice is added twice.
        """
        for places, numbers in ((self.keys, keys), (self.values, values)):
            if numbers is not None:
                size = len(places)
                blocks = (slots // size)[:, None, None].expand_as(numbers)
                where = torch.unravel_index(places[slots % size], cache.shape[1:])
                cache.index_put_((blocks, *where), numbers.to(cache.dtype), accumulate=True)


def find_layout(cache: Tensor, block_size: int, heads: tuple[int, int], write: Write) -> BlockLayout:
    """How ``write`` lays out block 0 of ``cache`` for ``heads`` (n_kv_heads, head_dim); the block is zero afterwards.

    Raises:
        ServingError: not every number is found again as it was written, as in a quantised cache.
    """
    shape = (2, block_size, *heads)
    codes = torch.arange(1, 2 * block_size * heads[0] * heads[1] + 1, device=cache.device).view(shape)
    found = torch.zeros(cache.shape[1:], dtype=torch.long, device=cache.device)
    slots = torch.arange(block_size, device=cache.device)
    scale = 1
    while scale <= codes.numel():
        cache[0].zero_()
        keys, values = (codes // scale % BASE).to(cache.dtype)
        write(keys.contiguous(), values.contiguous(), slots)
        found += cache[0].round().long() * scale
        scale *= BASE
    cache[0].zero_()
    if found.numel() < codes.numel() or not torch.equal(
        found.flatten().sort().values[-codes.numel() :], codes.flatten()
    ):
        raise ServingError(
            f"the KV cache of {cache.dtype} {list(cache.shape)} does not give back what is written to it, so no "
            "vector can be added. Serve with --kv-cache-dtype auto and without context parallelism"
        )
    keys, values = found.flatten().argsort()[-codes.numel() :].view(shape)  # what nothing was written to is 0: first
    return BlockLayout(keys, values)
