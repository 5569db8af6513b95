"""Statistics of pairs' differences that stream by: how alike the style shows in every pair.

Two passes over the batches, memory that does not grow with pairs. The first sums; the second
holds each pair against the mean. The figures go into the vector's metadata (docs/format.md).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factory.errors import VectorError
from factory.extraction.extract import Differences
from factory.vector.quality import Outlier, Quality

ENOUGH = 0.95  # reliability of the mean from which more pairs hardly change it
N_OUTLIERS = 5
N_BINS = 20


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of two tensors as flat directions; 0 if one is zero."""
    return float(torch.nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0))


def reliability(split_half: float) -> float:
    """What the agreement of two halves says about the whole (Spearman-Brown prophecy, 1910)."""
    return max(0.0, 2 * split_half / (1 + split_half)) if split_half > -1 else 0.0


@dataclass
class FirstPass:
    """Sums of all differences, of two halves of them, and of squares."""

    total: PartialSum
    halves: tuple[PartialSum, PartialSum]
    squares: Tensor  # float64 [n_layers, n_kv_heads, head_dim], of values
    block: int
    convergence: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def start(cls, shape: tuple[int, int, int], block: int = 1) -> FirstPass:
        """Nothing seen yet; ``shape`` is [n_layers, n_kv_heads, head_dim].

        ``block`` neighbours go to the same half: pairs that were read with the same examples
        agree for that reason alone, and would make two halves look more alike than they are.
        """
        zeros = torch.zeros(*shape, dtype=torch.float64)
        return cls(PartialSum.zero(shape), (PartialSum.zero(shape), PartialSum.zero(shape)), zeros, block)

    def add(self, batch: Differences) -> None:
        """Take one batch, in its fixed order."""
        for keys, values in zip(batch.keys, batch.values, strict=True):
            half = self.halves[self.total.count // self.block % 2]
            self.total.add(keys[None], values[None])
            half.add(keys[None], values[None])
            self.squares += values.double().square()
            if _is_checkpoint(self.total.count) and self.halves[1].count:
                self.convergence.append((self.total.count, self.split_half()))

    def split_half(self) -> float:
        """Cosine between the two halves' sums (values); 0 while there is no second half."""
        return cosine(self.halves[0].values, self.halves[1].values)

    def standard_error(self) -> Tensor:
        """Euclidean norm, a layer, of the mean's standard error (values): [n_layers]."""
        n = self.total.count
        variance = (self.squares / n - (self.total.values / n).square()).clamp(min=0) * n / max(1, n - 1)
        return (variance / n).flatten(1).sum(dim=1).sqrt()


def _is_checkpoint(count: int) -> bool:
    """1-2-4-8... and the steps halfway between, so that a curve has few and even points."""
    return count > 1 and (count & (count - 1) == 0 or (count % 3 == 0 and (count // 3) & (count // 3 - 1) == 0))


@dataclass
class SecondPass:
    """Each pair against the mean direction (values)."""

    mean: Tensor
    total: float = 0.0
    count: int = 0
    bins: list[int] = field(default_factory=lambda: [0] * N_BINS)
    worst: list[tuple[float, str]] = field(default_factory=list)  # a heap of (-cosine, pair_id)

    def add(self, batch: Differences) -> None:
        """Take one batch."""
        for pair_id, values in zip(batch.pair_ids, batch.values, strict=True):
            agreement = cosine(values, self.mean)
            self.total += agreement
            self.count += 1
            self.bins[min(N_BINS - 1, int((agreement + 1) / 2 * N_BINS))] += 1
            heapq.heappush(self.worst, (-agreement, pair_id))
            if len(self.worst) > N_OUTLIERS:
                heapq.heappop(self.worst)

    def outliers(self) -> tuple[Outlier, ...]:
        """The pairs that agree least with the mean, the worst first."""
        ordered = sorted((-negated, pair_id) for negated, pair_id in self.worst)
        return tuple(Outlier(pair_id=pair_id, cosine=round(agreement, 4)) for agreement, pair_id in ordered)


def summarize(first: FirstPass, second: SecondPass) -> Quality:
    """The figures of both passes."""
    mean_keys, mean_values = first.total.mean()
    split_half = first.split_half()
    reliable = reliability(split_half)
    return Quality(
        value_norms=_rounded(mean_values.flatten(1).norm(dim=1)),
        key_norms=_rounded(mean_keys.flatten(1).norm(dim=1)),
        standard_errors=_rounded(first.standard_error()),
        split_half_cosine=round(split_half, 6),
        reliability=round(reliable, 6),
        enough_pairs=reliable >= ENOUGH,
        convergence=tuple((count, round(agreement, 6)) for count, agreement in first.convergence),
        mean_pair_cosine=round(second.total / max(1, second.count), 6),
        pair_cosine_bins=tuple(second.bins),
        outliers=second.outliers(),
    )


def _rounded(numbers: Tensor) -> tuple[float, ...]:
    return tuple(round(float(number), 6) for number in numbers)


@dataclass
class PartialSum:
    """Differences summed so far: adding them in any order gives the same vector.

    Differences are float32 and are summed in float64, whose 29 more bits hold the sum of
    millions of them exactly in practice.
    """

    count: int
    keys: Tensor  # float64 [n_layers, n_kv_heads, head_dim]
    values: Tensor  # float64 [n_layers, n_kv_heads, head_dim]

    @classmethod
    def zero(cls, shape: Sequence[int]) -> PartialSum:
        """The sum of no differences of ``shape`` [n_layers, n_kv_heads, head_dim]."""
        return cls(0, torch.zeros(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64))

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Add pairs' differences, each ``[n_pairs, n_layers, n_kv_heads, head_dim]``, one by one in order."""
        for pair_keys, pair_values in zip(keys, values, strict=True):
            self.keys += pair_keys
            self.values += pair_values
            self.count += 1

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean keys and values, float32.

        Raises:
            VectorError: nothing was added.
        """
        if not self.count:
            raise VectorError("there is no difference to average: no pair could be read")
        return (self.keys / self.count).float(), (self.values / self.count).float()
