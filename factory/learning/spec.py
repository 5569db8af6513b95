"""How a vector is learned: every number that decides its bytes beside the pairs and the start. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from factory.frozen import Frozen

Objective = Literal["likelihood", "preference", "stay"]


class Learning(Frozen):
    """Rounds of gradient descent on a vector; each round reads some pairs and takes one step.

    The defaults follow a prototype on a 135M model; they are not tuned.
    """

    rounds: int = Field(60, ge=0)  # at most; 0: the vector stays the mean
    pairs_per_round: int = Field(8, ge=1)
    pairs_per_part: int = Field(4, ge=1)  # read in one pass, and so by one task
    rate: float = Field(0.03, gt=0)
    objective: Objective = "likelihood"
    penalty: float = Field(0.2, ge=0)  # weight of the divergence in "stay"
    response_tokens: int = Field(72, ge=1)
    start_values: float = 1.5  # what the start vector's values and keys are multiplied by
    start_keys: float = 0.8
    validation_share: float = Field(0.17, ge=0, le=0.5)  # of the pairs: not learned from, they stop the learning
    validate_every: int = Field(6, ge=1)  # rounds
    patience: int = Field(4, ge=1)  # validations without gain before learning stops
    seed: int = Field(0, ge=0)
