"""A condition: one way to put an item to the model, from plain to steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from factory.benchmark.outcome import FEW_SHOT, PROMPTED, RANDOM, STEERED, UNSTEERED
from factory.evaluation.examiner import random_like
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style
from factory.vector.steer import Steering

N_EXAMPLES = 4  # examples in context: as many as the few-shot recipe reads


@dataclass(frozen=True)
class Condition:
    """What is different from asking the bare model.

    ``role`` is one of the words above; ``name`` also says of which style or vector, where there are several.
    ``system`` is an instruction in words, ``examples`` are (question, answer) turns before the item,
    ``steering`` a vector. ``held_against`` names the conditions that this one is compared with.
    """

    name: str
    role: str
    steering: Steering | None = None
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    held_against: tuple[str, ...] = (UNSTEERED,)


BARE = Condition(UNSTEERED, UNSTEERED, held_against=())


def prompted_name(of: str = "") -> str:
    """The name of the condition that asks for a style in words; ``of`` names the style among several."""
    return f"{PROMPTED} for {of}" if of else PROMPTED


def baselines(style: Style, pairs: Sequence[ContrastivePair] = (), *, of: str = "") -> list[Condition]:
    """The model as it is, asked for the style in words, and shown examples of it where there are pairs.

    ``of`` names the style in the conditions' names, where a benchmark has several.
    """
    prompted = Condition(prompted_name(of), PROMPTED, system=style.instruction())
    if not pairs:
        return [BARE, prompted]
    shown = tuple((pair.question, pair.positive_response) for pair in pairs[:N_EXAMPLES])
    name = f"{FEW_SHOT} for {of}" if of else FEW_SHOT
    return [BARE, prompted, Condition(name, FEW_SHOT, examples=shown, held_against=(UNSTEERED, prompted.name))]


def steered(steering: Steering, name: str = "", *, of: str = "") -> list[Condition]:
    """A vector, and a random one of the same norms and strength: what any push of that size does.

    ``name`` tells the vector and ``of`` its style, where a benchmark has several.
    """
    bases = (UNSTEERED, prompted_name(of))
    random = Condition(
        f"{RANDOM} for {name}" if name else RANDOM,
        RANDOM,
        steering=replace(steering, vector=random_like(steering.vector)),
        held_against=bases,
    )
    return [Condition(name or STEERED, STEERED, steering=steering, held_against=(*bases, random.name)), random]
