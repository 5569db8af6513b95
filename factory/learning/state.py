"""The state of a learning, and the step from one state to the next: a pure function of state and gradient.

So a round may be taken on any machine, and taken twice, and gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from safetensors.torch import load, save
from torch import Tensor

from factory.errors import StyleFailed
from factory.learning.spec import Learning
from factory.vector.vector import SteeringVector

DECAYS = (0.9, 0.999)  # of Adam's two running means
EPSILON = 1e-8


@dataclass(frozen=True)
class PartSum:
    """What one part of a round gave, summed over its pairs.

    ``gradient`` is float32 ``[2, n_layers, n_kv_heads, head_dim]``, keys first; None of a part that
    validates. ``loss`` is in nats per token.
    """

    loss: float
    n_pairs: int
    gradient: Tensor | None = None


class RoundLoss(TypedDict):
    """The losses of a round's pairs before its step, nats per token; None where it read no such pairs."""

    round: int
    loss: float | None
    validation: float | None


@dataclass(frozen=True)
class State:
    """A vector between two rounds.

    Tensors are float32 ``[2, n_layers, n_kv_heads, head_dim]``, keys first. ``mean`` and ``square``
    are Adam's running means of the gradient and its square; ``best`` is the vector with the lowest
    validation loss so far. ``curve`` has an entry for each round taken.
    """

    round: int
    vector: Tensor
    mean: Tensor
    square: Tensor
    best: Tensor
    best_round: int = 0
    curve: tuple[RoundLoss, ...] = ()

    @classmethod
    def start(cls, vector: Tensor) -> State:
        """The state before the first round."""
        zeros = torch.zeros_like(vector)
        return cls(0, vector, zeros, zeros, vector)

    def is_done(self, learning: Learning) -> bool:
        """Whether no round is left, or the validation has gained nothing for too long."""
        validated = [entry["round"] for entry in self.curve if entry["validation"] is not None]
        waited = sum(number > self.best_round for number in validated)
        return self.round > learning.rounds or waited >= learning.patience

    @property
    def best_validation(self) -> float | None:
        """The lowest validation loss so far, nats per token; None before the first."""
        return min((loss for entry in self.curve if (loss := entry["validation"]) is not None), default=None)

    def to_bytes(self) -> bytes:
        """The state as a safetensors file; equal states give equal bytes."""
        header = {"round": self.round, "best_round": self.best_round, "curve": list(self.curve)}
        names = ("vector", "mean", "square", "best")
        tensors = {name: getattr(self, name).clone().contiguous() for name in names}
        return save(tensors, metadata={"state": json.dumps(header)})  # unsorted: a vector's bytes tell the order

    @classmethod
    def from_bytes(cls, raw: bytes) -> State:
        """Read what :meth:`to_bytes` wrote."""
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["state"])
        tensors = load(raw)
        return cls(
            round=header["round"],
            best_round=header["best_round"],
            curve=tuple(header["curve"]),
            vector=tensors["vector"],
            mean=tensors["mean"],
            square=tensors["square"],
            best=tensors["best"],
        )


def start_tensor(start: SteeringVector, learning: Learning) -> Tensor:
    """The numbers that learning starts from: float32 ``[2, n_layers, n_kv_heads, head_dim]``, keys first."""
    return torch.stack([learning.start_keys * start.key_vector, learning.start_values * start.value_vector])


def take_step(state: State, parts: Sequence[PartSum], learning: Learning) -> State:
    """The state after a round whose parts, in their order, gave ``parts``.

    The mean gradient of the pairs is summed in float64 in the order given; the step is Adam's
    (arXiv 1412.6980). In the last round nothing is learned: its state is only validated.

    Raises:
        StyleFailed: a loss or gradient is not finite.
    """
    taught = [part for part in parts if part.gradient is not None]
    entry = RoundLoss(
        round=state.round,
        loss=_mean_loss(taught),
        validation=_mean_loss([part for part in parts if part.gradient is None]),
    )
    state = _keep_best(state, entry["validation"])
    after = replace(state, round=state.round + 1, curve=(*state.curve, entry))
    if not taught:
        return after
    n_pairs = sum(part.n_pairs for part in taught)
    total = torch.zeros_like(state.vector, dtype=torch.float64)
    for part in taught:
        if part.gradient is not None:
            total += part.gradient
    gradient = (total / n_pairs).float()
    if not gradient.isfinite().all():
        raise StyleFailed(
            f"learning: the gradient of round {state.round} is not finite. Take a lower learning.rate, "
            "or dtype: float32"
        )
    return _adam(after, gradient, learning.rate_of(state.round))


def _mean_loss(parts: Sequence[PartSum]) -> float | None:
    n_pairs = sum(part.n_pairs for part in parts)
    return round(sum(part.loss for part in parts) / n_pairs, 6) if n_pairs else None


def _keep_best(state: State, validation: float | None) -> State:
    """Without pairs that validate, the last vector is the best."""
    best = state.best_validation
    if validation is None:
        return state if best is not None else replace(state, best=state.vector, best_round=state.round)
    if best is not None and validation >= best:
        return state
    return replace(state, best=state.vector, best_round=state.round)


def _adam(state: State, gradient: Tensor, rate: float) -> State:
    first, second = DECAYS
    mean = first * state.mean + (1 - first) * gradient
    square = second * state.square + (1 - second) * gradient.square()
    # state.round counts from 1 here: the round that was taken is already in it
    moved = (mean / (1 - first**state.round)) / ((square / (1 - second**state.round)).sqrt() + EPSILON)
    return replace(state, vector=state.vector - rate * moved, mean=mean, square=square)
