"""What an evaluation asks: the held-out questions, the sweep, and the parts into which it is cut."""

from __future__ import annotations

from factory.frozen import Frozen

BASELINES = ("unsteered", "prompted")
CONTROLS = ("random", "negated")
CHECKS = ("steered", *CONTROLS, "capability")


MEAN = "mean"  # the part that measures the mean from which a vector was learned


class MeanSweep(Frozen):
    """The settings among which the probe finds one for the mean."""

    strengths: tuple[float, ...]
    key_strengths: tuple[float, ...]
    positions: tuple[int, ...]
    layer_sets: tuple[str, ...]


class EvaluationSpec(Frozen):
    """The held-out questions and the sweep.

    The cell is chosen on ``choice_questions`` and measured on ``questions``; none is in both. ``mean``: how the
    mean is added that a learned vector is held against; None where the vector is not learned.
    """

    questions: tuple[str, ...]
    choice_questions: tuple[str, ...]
    probe_questions: tuple[str, ...]
    cells: int = 6
    max_loops: float = 0.1
    strengths: tuple[float, ...]
    key_strengths: tuple[float, ...] = (0.0,)
    positions: tuple[int, ...]
    layer_sets: tuple[str, ...]
    max_new_tokens: int
    thinking_tokens: int = 0  # runs of older versions cut thoughts at max_new_tokens
    judge_model: str | None = None
    mean: MeanSweep | None = None

    @property
    def first_parts(self) -> list[str]:
        """The parts of an evaluation that need no choice: baselines, and the cells that the probe ranks first."""
        n_cells = len(self.strengths) * len(self.positions) * len(self.layer_sets) * len(self.key_strengths)
        return [*BASELINES, *(f"cell-{rank}" for rank in range(min(self.cells, n_cells)))]

    @property
    def parts(self) -> list[str]:
        """Every part of an evaluation, in order; the checks of the chosen cell come last."""
        return [*self.first_parts, *CHECKS, *([MEAN] if self.mean else [])]

    def questions_of(self, part: str) -> tuple[str, ...]:
        """The questions that ``part`` asks.

        Cells of the sweep use the choice questions; baselines and the chosen cell use the held-out
        ones; the two controls use every second of those.
        """
        if part == "capability":
            return ()  # it has its own, with known answers
        if part.startswith("cell-"):
            return self.choice_questions
        return self.questions[::2] if part in CONTROLS else self.questions
