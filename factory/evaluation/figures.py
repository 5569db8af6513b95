"""Figures of an evaluation: one frozen type for each kind, written and read as plain data by these alone.

They lie in the ledger and in the vector's metadata (docs/format.md). No model and no torch here, so
that a machine without them can tell how far a run is.
"""

from __future__ import annotations

from factory.evaluation.cell import Cell
from factory.frozen import Record

Interval = tuple[float, float]  # of 95 %


class StateFigures(Record):
    """How a model answered in one state.

    ``share``: answers in the style, with its ``interval``; ``markers`` and ``words`` per answer;
    ``distinct_4grams`` (share of 4-grams of words said once) and ``loops`` (share of answers) tell
    fluency; ``perplexity``: the median under the unsteered model, and ``relevance``: the mean, in nats per
    token, by which an answer is likelier after its own question than after others, where they were measured;
    ``repeated_sentences``: the share of sentences that another answer has, ``stock_phrases``: that of an
    answer's phrases which several have. ``thoughts_cut``: answers that are none, as the model's thought did
    not end in time.
    """

    n: int
    share: float
    interval: Interval
    markers: float
    words: float
    distinct_4grams: float
    loops: float
    perplexity: float | None = None
    relevance: float | None = None
    repeated_sentences: float | None = None
    stock_phrases: float | None = None
    thoughts_cut: int = 0


class AnswerFigures(StateFigures):
    """Figures with their lists by answer: ``in_style`` 0 or 1, ``shown`` the count of markers.

    ``relevances``: of the first answers, those that were measured; None for an empty one.
    """

    in_style: tuple[int, ...]
    shown: tuple[int, ...]
    relevances: tuple[float | None, ...] = ()

    def summary(self) -> StateFigures:
        """The figures without their lists."""
        return StateFigures.model_validate(self.to_json())


class JudgeScores(Record):
    """Mean scores of a judge, from 0 to 100, of ``n`` answers; ``unreadable`` ones got none.

    ``style`` and ``coherence`` are None where no answer got a score. ``failed``: why the judge was not heard.
    """

    model: str
    style: float | None = None
    coherence: float | None = None
    n: int = 0
    unreadable: int = 0
    failed: str | None = None


class JudgedAnswers(JudgeScores):
    """Scores with their list by answer: ``styles``, None where an answer got none; older files have no list."""

    styles: tuple[int | None, ...] = ()

    def summary(self) -> JudgeScores:
        """The scores without their list."""
        return JudgeScores.model_validate(self.to_json())


class Preferences(Record):
    """Which of two answers to each of ``n`` questions a judge prefers, shown both orders: the steered or the prompted.

    ``won``: the steered one in both orders, ``lost``: the prompted one in both. ``split``: it prefers
    whichever stands in one place; ``tied``: all others. ``interval``: of the gain, won less lost, as a share of ``n``.
    ``unreadable`` questions have no two readable replies. ``failed``: why the judge was not heard.
    """

    model: str
    n: int = 0
    won: int = 0
    lost: int = 0
    tied: int = 0
    split: int = 0
    interval: Interval | None = None
    unreadable: int = 0
    failed: str | None = None


class Agreement(Record):
    """How far a judge and the style's markers agree on which of ``n`` answers are in the style.

    ``kappa``: Cohen's (1960): 1 is full agreement, 0 what chance would give; None where chance alone
    gives full agreement, as both say the same of every answer.
    """

    n: int
    both: int
    judge_only: int
    markers_only: int
    neither: int
    kappa: float | None


class Reading(Record):
    """What the probe reads of one cell, averaged over questions.

    ``openings``: log-probability (nats) of the likeliest of the style's openings. ``moved``: KL
    divergence (nats) of the next token's distribution from the unsteered one. ``doses``: by layer, the
    norm of what is added to the values over the norm of the values that it is added to.
    """

    setting: Cell
    openings: float
    moved: float
    doses: tuple[float, ...] = ()


class Capability(Record):
    """Share of ``n`` exact questions that were answered right.

    ``won`` questions are right only when steered, ``lost`` ones only when not; older files do not say.
    """

    n: int
    unsteered: float
    steered: float
    won: int | None = None
    lost: int | None = None


class RightAnswers(Record):
    """Right answers to the ``n`` items of a ``task``: ``won`` only when steered, ``lost`` only when not."""

    task: str
    n: int
    won: int
    lost: int


class Environment(Record):
    """Where something was measured: what besides vector, questions and settings decides figures.

    ``date``: the day that the chat template writes, where it writes one. ``device``: the GPU's name, or "cpu".
    """

    model: str
    model_revision: str
    dtype: str
    date: str | None = None
    device: str
    machine: str
    versions: dict[str, str]


class Check(Record):
    """One rule of the verdict: whether it is ``passed`` (None: not measured), ``said`` with its figures."""

    name: str
    passed: bool | None
    said: str


class CellFigures(Record):
    """One cell that answered: its ``setting``, the ``layers`` that it means, its figures and its reading.

    ``answers``: where they lie in the store.
    """

    setting: Cell
    layers: tuple[int, ...]
    figures: StateFigures
    judged: JudgeScores | None = None
    answers: str
    openings: float
    moved: float


class Scope(Record):
    """On how many questions an evaluation stands, and within which limits."""

    questions: int
    choice_questions: int
    max_new_tokens: int
    max_loops: float
