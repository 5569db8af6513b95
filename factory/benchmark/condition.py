"""A condition: one way to put an item to the model, from plain to steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.evaluation.examiner import random_like
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style
from factory.vector.steer import Steering

UNSTEERED = "unsteered"
PROMPTED = "prompted"
FEW_SHOT = "few-shot"
RANDOM = "random"
STEERED = "steered"
N_EXAMPLES = 4  # examples in context: as many as the few-shot recipe reads


@dataclass(frozen=True)
class Condition:
    """What is different from asking the bare model.

    ``system`` is an instruction in words, ``examples`` are (question, answer) turns before the item,
    ``steering`` a vector. The first condition of a benchmark is the one that others are held against.
    """

    name: str
    steering: Steering | None = None
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()


def baselines(style: Style, pairs: Sequence[ContrastivePair] = (), *, of: str = "") -> list[Condition]:
    """The model as it is, asked for the style in words, and shown examples of it where there are pairs.

    ``of`` names the style in the conditions' names, where a benchmark has several.
    """
    named = f" for {of}" if of else ""
    found = [Condition(UNSTEERED), Condition(PROMPTED + named, system=style.instruction())]
    if pairs:
        shown = tuple((pair.question, pair.positive_response) for pair in pairs[:N_EXAMPLES])
        found.append(Condition(FEW_SHOT + named, examples=shown))
    return found


def steered(name: str, steering: Steering) -> list[Condition]:
    """A vector, and a random one of the same norms and strength: what any push of that size does."""
    control = Steering(random_like(steering.vector), steering.strength, steering.key_strength, steering.n_positions)
    return [
        Condition(name, steering=steering),
        Condition(RANDOM if name == STEERED else f"{RANDOM} for {name}", steering=control),
    ]
