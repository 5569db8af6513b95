"""How a vector is learned: every number that decides its bytes beside the pairs and the start. Needs no torch."""

from __future__ import annotations

from math import ceil
from typing import Literal, Self

from pydantic import Field, model_validator

from factory.frozen import Frozen

Objective = Literal["likelihood", "preference", "stay"]
Targets = Literal["written", "on_policy"]
PLACES = 1000  # that a round has for its parts in a run's ledger


class Learning(Frozen):
    """Rounds of gradient descent on a vector; each round reads some pairs and takes one step.

    The defaults are the best of a few tries on a 135M model with one style, measured with three (docs/learning.md).
    """

    rounds: int = Field(60, ge=0, description="rounds of learning, at most; 0: the vector stays the mean")
    pairs_per_round: int = Field(4, ge=1, description="pairs from which a round learns")
    pairs_per_part: int = Field(4, ge=1, description="pairs that are read in one pass, and so by one task")
    rate: float = Field(0.05, gt=0, description="learning rate of the first step (Adam); it falls linearly to 0")
    objective: Objective = Field(
        "likelihood",
        description="what learning makes smaller: likelihood, preference (of the positive response over the negative "
        "one), or stay (likelihood, and staying close to the unsteered model where the style does not matter)",
    )
    targets: Targets = Field(
        "written",
        description="what is learned from: written responses, or on_policy: what the model itself says when it is "
        "shown examples, where that is in the style and does not loop",
    )
    penalty: float = Field(0.2, ge=0, description="weight of staying close in the objective stay")
    loop_penalty: float = Field(0.5, ge=0, description="weight of the unlikelihood of saying a sentence again; 0: none")
    response_tokens: int = Field(96, ge=1, description="tokens of a response that are learned from, cut at a sentence")
    start_values: float = Field(1.5, description="what the mean's values are multiplied by where learning begins")
    start_keys: float = Field(0.8, description="what the mean's keys are multiplied by where learning begins")
    validation_share: float = Field(
        0.17, ge=0, le=0.5, description="share of the pairs that are not learned from, and that stop the learning"
    )
    validation_limit: int = Field(64, ge=0, description="number of such pairs, at most")
    validate_every: int = Field(12, ge=1, description="rounds between two validations")
    patience: int = Field(4, ge=1, description="validations without a gain after which learning stops")
    seed: int = Field(0, ge=0, description="seed of the draw of pairs")

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        parts = ceil(self.pairs_per_round / self.pairs_per_part) + ceil(self.validation_limit / self.pairs_per_part)
        if parts > PLACES:
            raise ValueError(f"a round may have {PLACES} parts, found {parts}: take more pairs_per_part")
        return self

    def rate_of(self, number: int) -> float:
        """The rate of round ``number``'s step.

        It falls, so that the last vectors differ little and none is the luck of its last few pairs.
        """
        return self.rate * (1 - number / self.rounds)
