"""Evaluation: whether a vector steers, how strongly it should be added, and what that costs.

In three stages, all on questions that no vector has seen. The probe ranks every cell
of the sweep. The best few answer the questions kept for choosing, and one of them is
chosen: most answers in the style, hardly any loops. On the remaining questions the chosen cell
is held against the unsteered model, the prompted one, a random and the negated vector. Choosing
and measuring use different questions, so that the reported effect is not the luck of the choice.

Every part is one small piece of work with a name, so that a queue can stand between the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factory.errors import ConfigError
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.capability import EXACT_ANSWER_TOKENS, EXACT_QUESTIONS, are_right, compare_right
from factory.evaluation.cell import Cell
from factory.evaluation.certificate import control_seed
from factory.evaluation.environment import environment_of
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.figures import Capability, Reading
from factory.evaluation.judged import Scorer
from factory.evaluation.parts import Answered, PartResult, PartsDone, Tried, Untried
from factory.evaluation.probe import Probe, apply_cell, layers_of
from factory.evaluation.relevance import surprises_of
from factory.evaluation.score import score
from factory.evaluation.spec import BASELINES, MEAN, EvaluationSpec
from factory.evaluation.thought import answers_of, thoughts_cut
from factory.evaluation.verdict import choose_cell, conclude, specificity_of
from factory.files import hash_of, sha256_of
from factory.pairs.styles import Style
from factory.store import Store
from factory.target.model import Target
from factory.vector.steer import Steering
from factory.vector.vector import SteeringVector

SURPRISED = ("unsteered", "prompted", "steered")  # parts whose answers the unsteered model reads
SAMPLE = 8  # answers that it reads, each after three questions: that costs more than giving them
ENOUGH = math.log(0.5)  # log-probability of the openings above which more strength adds loops only


def sweep_cells(spec: EvaluationSpec) -> list[Cell]:
    """Every cell of the sweep."""
    return [
        Cell(strength, layers, n_positions, key_strength)
        for layers in spec.layer_sets
        for n_positions in spec.positions
        for key_strength in spec.key_strengths
        for strength in spec.strengths
    ]


@dataclass(frozen=True)
class Examiner:
    """One vector, the model that it is for, and the questions to try it on.

    ``mean``: the mean from which the vector was learned, if the spec asks for it.
    """

    target: Target
    vector: SteeringVector
    style: Style
    spec: EvaluationSpec
    store: Store
    scorer: Scorer | None = None
    mean: SteeringVector | None = None

    def examine(self, part: str, done: PartsDone) -> PartResult:
        """Do one part; ``done`` holds the parts that it builds on."""
        if part in BASELINES:
            return self._measure(part, None, self.style.instruction() if part == "prompted" else None)
        if part.startswith("cell-"):
            rank = int(part.removeprefix("cell-"))
            readings = self.readings()
            if rank >= len(readings):
                return Untried()  # the vector lacks layers of the sweep: it has fewer cells than was planned
            tried = self._try(part, readings[rank])
            return tried.model_copy(update={"gate": tuple(readings)}) if rank == 0 else tried
        if part == MEAN:
            of_mean = self._of_mean()
            return of_mean._try(part, of_mean.readings()[0])
        cell = choose_cell(done.cells, self.spec).setting
        if part == "capability":
            return self._capability(cell)
        measured = self._measure(part, self._steering(part, cell))
        return self._compare(measured, done.states["prompted"]) if part == "steered" else measured

    def mean_steering(self) -> Steering:
        """The mean, added as its own probe finds best.

        Raises:
            ConfigError: the spec asks for no mean, or there is none.
        """
        of_mean = self._of_mean()
        return apply_cell(of_mean.vector, of_mean.readings()[0].setting)

    def _of_mean(self) -> Examiner:
        """The same examination of the mean, with its own settings.

        Raises:
            ConfigError: the spec asks for no mean, or there is none.
        """
        if self.mean is None or self.spec.mean is None:
            raise ConfigError("the vector was not learned from a mean that is known: nothing to hold it against")
        spec = self.spec.model_copy(update=dict(self.spec.mean))
        return replace(self, vector=self.mean, mean=None, spec=spec)

    def readings(self) -> list[Reading]:
        """What the probe reads of every cell, the most promising first."""
        tensors = [self.vector.key_vector, self.vector.value_vector]
        asked = {
            "model": [self.target.name, self.target.revision, self.target.dtype],
            "vector": [sha256_of(tensor.numpy().tobytes()) for tensor in tensors],
            "openings": self.style.openings,
            "spec": self.spec.model_dump(mode="json"),
        }
        key = f"probes/{hash_of(asked)}.json"
        known = self.store.read_json(key)
        if known is None:
            known = [reading.to_json() for reading in self._read_all()]
            self.store.write_json(key, known)
        return [Reading.model_validate(reading) for reading in known]

    def _read_all(self) -> list[Reading]:
        probe = Probe(self.target, self.style, self.spec.probe_questions)
        readings = [probe.read(self.vector, cell) for cell in self._usable_cells()]
        return rank(readings, self.spec.cells)

    def _usable_cells(self) -> list[Cell]:
        """The sweep without layer sets that this vector does not hold."""
        usable = [cell for cell in sweep_cells(self.spec) if layers_of(self.vector, cell)]
        if self.target.anatomy.refusal:  # its values alone can be added
            usable = [cell for cell in usable if not cell.key_strength] or usable
        if not usable:
            raise ConfigError(
                f"evaluation.layer_sets {list(self.spec.layer_sets)} hold none of the vector's layers "
                f"{self.vector.layer_indices}: use 'all' or some of these"
            )
        return usable

    def _try(self, part: str, reading: Reading) -> Tried:
        """One cell of the sweep, on the part's questions."""
        steering = apply_cell(self.vector, reading.setting)
        answered = self._measure(part, steering)
        layers = {"layers": steering.vector.layer_indices}
        return Tried.model_validate(reading.to_json() | layers | answered.to_json())

    def _measure(self, part: str, steering: Steering | None, system: str | None = None) -> Answered:
        """What the model answers in one state, and the figures of that."""
        questions = self.spec.questions_of(part)
        thinking = self.spec.thinking_tokens
        questioning = Questioning(questions, self.spec.max_new_tokens, steering, system, thought_tokens=thinking)
        said = ask(self.target, questioning, self.store)
        answers, cut = answers_of(said), thoughts_cut(said)
        sample = slice(SAMPLE if part in SURPRISED else 0)
        surprises = surprises_of(self.target, questions[sample], answers[sample])
        figures = score(answers, self.style, surprises)
        if cut:
            figures = figures.model_copy(update={"thoughts_cut": cut})
        answered = Answered(
            figures=figures,
            answers=questioning.key(self.target),
            answers_sha256=hash_of(said),
            environment=environment_of(self.target),
        )
        if self.scorer is None:
            return answered
        judged, cost = self.scorer.score(questions, answers)
        return answered.model_copy(update={"judged": judged, "cost_usd": cost})

    def _compare(self, steered: Answered, prompted: Answered) -> Answered:
        """``steered``, with the judge's preference between its answers and the ``prompted`` ones, if there is one."""
        if self.scorer is None:
            return steered
        after, before = (answers_of(self.store.require_json(state.answers)) for state in (steered, prompted))
        preferred, cost = self.scorer.prefer(self.spec.questions, after, before)
        return steered.model_copy(update={"preferred": preferred, "cost_usd": steered.cost_usd + cost})

    def _steering(self, part: str, cell: Cell) -> Steering:
        steering = apply_cell(self.vector, cell)
        if part == "random":
            return replace(steering, vector=random_like(steering.vector))
        if part == "negated":
            return replace(steering, vector=-steering.vector)
        return steering

    def _capability(self, cell: Cell) -> Capability:
        questions = tuple(exact.question for exact in EXACT_QUESTIONS)
        unsteered, steered = (
            are_right(self._exact_answers(questions, steering)) for steering in (None, self._steering("steered", cell))
        )
        return compare_right(unsteered, steered)

    def _exact_answers(self, questions: tuple[str, ...], steering: Steering | None) -> list[str]:
        thinking = self.spec.thinking_tokens
        asked = Questioning(questions, EXACT_ANSWER_TOKENS, steering, thought_tokens=thinking)
        return answers_of(ask(self.target, asked, self.store))


def rank(readings: Sequence[Reading], count: int) -> list[Reading]:
    """The readings, those ``count`` first whose cells deserve real answers.

    Openings become likelier with strength until the model only loops, which the probe cannot see.
    Measured: around a probability of one half most answers are in the style, above it only loops
    are gained. So the cells nearest to one half come first, whichever layers they have; the last
    place goes to the weakest strength, in case all others loop.
    """
    ranked = sorted(readings, key=lambda reading: abs(reading.openings - ENOUGH))
    weakest = min(ranked, key=lambda reading: abs(reading.setting.strength))
    if count > 1 and weakest not in ranked[:count]:
        ranked.remove(weakest)
        ranked.insert(count - 1, weakest)
    return ranked


def random_like(vector: SteeringVector) -> SteeringVector:
    """A random direction with the vector's norms at each layer; the same for the same style."""
    generator = torch.Generator().manual_seed(control_seed(vector.style_name))

    def drawn(like: Tensor) -> Tensor:
        noise: Tensor = torch.randn(like.shape, generator=generator)
        norms: Tensor = like.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return noise * norms[:, None, None]

    return replace(vector, key_vector=drawn(vector.key_vector), value_vector=drawn(vector.value_vector))


def evaluate(examiner: Examiner, after: Callable[[str], None] = lambda part: None) -> tuple[Evaluation, PartsDone]:
    """Do every part of an examination here, in this process; also returns what became of each.

    ``after`` is told each part that is done.

    Raises:
        VectorError: the vector is for another model.
        ConfigError: the sweep's layer sets hold none of the vector's layers.
    """
    style = examiner.style
    results: dict[str, PartResult] = {}
    for part in examiner.spec.parts:
        results[part] = examiner.examine(part, PartsDone.of(results))
        after(part)
    done = PartsDone.of(results)
    answers = examiner.store.require_json(done.states["steered"].answers)
    return conclude(style, examiner.spec, done, specificity_of(answers, {style.name: style})), done
