"""Parts of an evaluation that are done: one frozen type for each kind, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from factory.evaluation.figures import (
    AnswerFigures,
    Capability,
    CellFigures,
    Environment,
    JudgedAnswers,
    Preferences,
    Reading,
)
from factory.evaluation.spec import MEAN
from factory.frozen import Record


class Answered(Record):
    """A state of the model that answered the held-out questions. ``answers``: where they lie in the store.

    ``preferred``: which answers a judge prefers, of the steered state alone; ``cost_usd``: what the judge
    has cost. ``answers_sha256`` and ``environment``: what was answered, and where; older files do not say.
    """

    figures: AnswerFigures
    judged: JudgedAnswers | None = None
    preferred: Preferences | None = None
    cost_usd: float = 0.0
    answers: str
    answers_sha256: str | None = None
    environment: Environment | None = None


class Tried(CellFigures):
    """A cell that answered the questions kept for choosing. The first holds what the probe read of all (``gate``)."""

    figures: AnswerFigures
    cost_usd: float = 0.0
    gate: tuple[Reading, ...] = ()

    def summary(self) -> CellFigures:
        """What stays of the cell in the vector's metadata."""
        kept = self.to_json() | {"figures": self.figures.summary().to_json()}
        return CellFigures.model_validate(kept)


class Untried(Record):
    """A cell that was planned and is not: the vector lacks layers of the sweep."""


PartResult = Answered | Tried | Untried | Capability


def kind_of_part(name: str, content: Mapping[str, object]) -> type[PartResult]:
    """Which kind the part ``name`` is, of which ``content`` was written down."""
    if name == "capability":
        return Capability
    if name == MEAN:
        return Tried
    if name.startswith("cell-"):
        return Tried if "figures" in content else Untried
    return Answered


@dataclass(frozen=True)
class PartsDone:
    """The parts that are done: ``states`` of the model by name, ``cells`` as the probe ranked them.

    ``mean``: what the mean does from which the vector was learned, if it was.
    """

    states: Mapping[str, Answered] = field(default_factory=dict)
    cells: tuple[Tried, ...] = ()
    capability: Capability | None = None
    mean: Tried | None = None

    @classmethod
    def of(cls, done: Mapping[str, PartResult]) -> PartsDone:
        """The parts by name, whatever their order."""
        ranks = sorted(int(name.removeprefix("cell-")) for name in done if name.startswith("cell-"))
        cells = [done[f"cell-{rank}"] for rank in ranks]
        checked, mean = done.get("capability"), done.get(MEAN)
        return cls(
            states={name: part for name, part in done.items() if isinstance(part, Answered)},
            cells=tuple(cell for cell in cells if isinstance(cell, Tried)),
            capability=checked if isinstance(checked, Capability) else None,
            mean=mean if isinstance(mean, Tried) else None,
        )

    @property
    def cost_usd(self) -> float:
        """What the judge has cost."""
        tried = sum(part.cost_usd for part in (*self.cells, self.mean) if part)
        return tried + sum(part.cost_usd for part in self.states.values())
