"""The report of a run: one HTML page with pictures, that needs no network.

Everything is read from the store: the ledger, the vectors with their evaluation, the answers and
the pairs. The page is ``factory/data/report.html.j2``; its figures come from figures.py.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from factory.benchmark.outcome import TaskResult, read_tasks
from factory.evaluation.agreement import describe_judging
from factory.evaluation.evaluation import Evaluation
from factory.evaluation.thought import answers_of
from factory.extras import DISTRIBUTION
from factory.learning.description import describe_learning
from factory.pairs.fluency import distinct_ngrams, is_looping
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style
from factory.report import figures
from factory.report.timing import time_phases, time_workers, timeline
from factory.run.artifacts import batch_of
from factory.run.ledger import Ledger, Page
from factory.run.progress import StyleProgress, progress_of
from factory.vector.quality import Quality
from factory.vector.statistics import ENOUGH
from factory.vector.vector import SteeringVector

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.html"
MOST_PAIRS = 300  # a style; a page with more is slow to open
COMPARED = ("unsteered", "prompted", "steered")
ENOUGH_HALVES = ENOUGH / (2 - ENOUGH)  # the split-half cosine at which the whole's reliability is ENOUGH


@dataclass(frozen=True)
class ShownAnswer:
    """An answer: as it is, with its markers highlighted, and how many those are."""

    text: str
    marked: Markup
    markers: int


@dataclass(frozen=True)
class AnsweredQuestion:
    """A held-out question with the answer of each state of the model."""

    question: str
    answers: dict[str, ShownAnswer]


@dataclass(frozen=True)
class ShownPair:
    """A pair for browsing: both answers marked; ``markers`` and ``words`` of the positive and the negative.

    ``cosine``: its agreement with the vector, where it is an outlier.
    """

    id: str
    question: str
    positive: Markup
    negative: Markup
    markers: tuple[int, int]
    words: tuple[int, int]
    cosine: float | None


@dataclass(frozen=True)
class RejectedPair:
    """A pair (or the question of one) that could not be used, and why."""

    pair_id: str
    reason: str


@dataclass(frozen=True)
class StyleSection:
    """What the page says about one style. ``forests``: a picture of each of its ``tasks``."""

    style: Style
    progress: StyleProgress
    vector: SteeringVector | None
    evaluation: Evaluation | None
    tasks: list[TaskResult]
    figures: dict[str, Markup]
    forests: list[Markup]
    answers: list[AnsweredQuestion]
    pairs: list[ShownPair]
    rejected: list[RejectedPair]
    provenance: dict[str, str]

    @property
    def verdict(self) -> str:
        """The verdict in a few words."""
        if self.vector is None:
            return "no vector"
        return self.evaluation.verdict if self.evaluation else "not evaluated"

    @property
    def setting(self) -> str:
        """How the evaluation adds the vector, in a few words."""
        return self.evaluation.setting.describe() if self.evaluation else ""

    @property
    def mean_setting(self) -> str:
        """How the evaluation adds the mean from which the vector was learned, in a few words."""
        setting = self.evaluation.mean_setting if self.evaluation else None
        return setting.describe() if setting else ""

    @property
    def judging(self) -> list[str]:
        """What a judge prefers and how far it agrees with the markers, if one was asked."""
        return describe_judging(self.evaluation) if self.evaluation else []

    @property
    def quality(self) -> Quality | None:
        """The vector's figures of quality."""
        return Quality.read(self.vector.metadata) if self.vector else None


def write_report(ledger: Ledger) -> str:
    """Write a run's report into its folder of the store; returns where it lies.

    Raises:
        StoreError: an artifact is damaged or gone.
    """
    key = f"{ledger.run_id}/{REPORT_FILE}"
    ledger.store.write(key, render_report(ledger).encode())
    return ledger.store.path(key)


def write_summary(ledger: Ledger) -> str:
    """Write one page of a run, to print or to mail, beside its report; returns where it lies.

    Raises:
        StoreError: an artifact is damaged or gone.
    """
    key = f"{ledger.run_id}/{SUMMARY_FILE}"
    sections = [_section(page) for page in ledger.pages]
    page = _template("summary.html.j2").render(
        run=ledger.run_id, spec=ledger.spec, sections=sections, versions=_versions()
    )
    ledger.store.write(key, page.encode())
    return ledger.store.path(key)


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("factory", "data"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def render_report(ledger: Ledger) -> str:
    """The report's HTML."""
    sections = [_section(page) for page in ledger.pages]
    parts = timeline(ledger)
    return _template("report.html.j2").render(
        run=ledger.run_id,
        spec=ledger.spec,
        sections=sections,
        matrices=_matrices(ledger, sections),
        phases=time_phases(parts),
        workers=time_workers(parts),
        versions=_versions(),
    )


def _section(page: Page) -> StyleSection:
    style = page.style
    content = page.store.read(page.vector_key)
    vector = SteeringVector.from_bytes(content, source=f"{style.name}.pt") if content else None
    evaluation = Evaluation.read(vector.metadata) if vector else None
    tasks = read_tasks(vector.metadata) if vector else []
    return StyleSection(
        style=style,
        progress=progress_of(page),
        vector=vector,
        evaluation=evaluation,
        tasks=tasks,
        figures=_figures(style.name, vector, evaluation) if vector else {},
        forests=[
            Markup(figures.forest_figure(f"{style.name}-task-{number}", task)) for number, task in enumerate(tasks, 1)
        ],
        answers=side_by_side(page) if evaluation else [],
        pairs=_pairs(page, vector),
        rejected=_rejected(page, vector),
        provenance=_provenance(vector) if vector else {},
    )


def _figures(style: str, vector: SteeringVector, evaluation: Evaluation | None) -> dict[str, Markup]:
    quality = Quality.read(vector.metadata)
    norms = vector.value_vector.norm(dim=2).tolist()  # [n_layers][n_kv_heads]
    chosen = evaluation.layers if evaluation else ()
    made = {"layers": figures.layers_figure(f"{style}-layers", norms, vector.layer_indices, chosen)}
    learned = vector.metadata.get("learning")
    if learned:
        made["learning"] = figures.learning_figure(f"{style}-learning", learned["curve"], learned["best_round"])
    if quality and quality.convergence:
        made["convergence"] = figures.convergence_figure(f"{style}-convergence", quality.convergence, ENOUGH_HALVES)
    if quality and quality.pair_cosine_bins:
        made["agreement"] = figures.agreement_figure(f"{style}-agreement", quality.pair_cosine_bins)
    if evaluation:
        baseline = evaluation.measured["unsteered"].share
        made["sweep"] = figures.sweep_figure(f"{style}-sweep", evaluation.cells, baseline)
        made["compared"] = figures.compared_figure(f"{style}-compared", evaluation.measured)
        if evaluation.measured["steered"].relevance is not None:
            made["topic"] = figures.topic_figure(f"{style}-topic", evaluation.measured)
        made["probe"] = figures.probe_figure(f"{style}-probe", evaluation.gate)
    return {name: Markup(svg) for name, svg in made.items()}  # figures.py escapes


def side_by_side(page: Page) -> list[AnsweredQuestion]:
    """Held-out questions with the unsteered, the prompted and the steered answer."""
    states, style = page.evaluated().states, page.style
    spec = page.ledger.spec.evaluation
    if spec is None or any(name not in states for name in COMPARED):
        return []
    answers = {name: answers_of(page.store.read_json(states[name].answers) or []) for name in COMPARED}
    rows = zip_longest(spec.questions, *answers.values(), fillvalue="")
    return [
        AnsweredQuestion(question, {name: _answer(text, style) for name, text in zip(COMPARED, texts, strict=True)})
        for question, *texts in rows
    ]


def _answer(text: str, style: Style) -> ShownAnswer:
    return ShownAnswer(text, highlight(text, style), style.count_markers(text))


def highlight(text: str, style: Style) -> Markup:
    """``text`` as HTML with the style's markers in ``<mark>``."""
    flags = re.IGNORECASE | re.MULTILINE
    spans = sorted(match.span() for marker in style.markers for match in re.finditer(marker, text, flags))
    parts, at = [], 0
    for start, end in spans:
        if start < at or start == end:
            continue
        parts += [escape(text[at:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def _pairs(page: Page, vector: SteeringVector | None) -> list[ShownPair]:
    """The dataset for browsing: the outliers first, then in order; :data:`MOST_PAIRS` at most.

    Batches are read in order until there is no more to show.
    """
    quality = Quality.read(vector.metadata) if vector else None
    outliers = {pair.pair_id: pair.cosine for pair in quality.outliers} if quality else {}
    first: list[ContrastivePair] = []
    usual: list[ContrastivePair] = []
    for batch in page.batches:
        if len(first) == len(outliers) and len(first) + len(usual) >= MOST_PAIRS:
            break
        if batch.pairs_key or page.written(batch.number):
            pairs = batch_of(page, batch.number)[0]
            first += [pair for pair in pairs if pair.pair_id in outliers]
            room = MOST_PAIRS - len(usual)
            usual += [pair for pair in pairs if pair.pair_id not in outliers][:room]
    first.sort(key=lambda pair: outliers[pair.pair_id])
    return [_pair(pair, page.style, outliers) for pair in [*first, *usual][:MOST_PAIRS]]


def _rejected(page: Page, vector: SteeringVector | None) -> list[RejectedPair]:
    """Pairs that the gates or the extraction refused, with the reason."""
    failures = vector.metadata.get("failures", []) if vector else []
    found = [RejectedPair(failure["pair_id"], failure["reason"]) for failure in failures]
    for batch in page.batches:
        written = page.written(batch.number)
        if written and written.reasons:  # no other batch has any
            found += [RejectedPair(line.question, line.reason) for line in batch_of(page, batch.number)[1]]
    return found


def _pair(pair: ContrastivePair, style: Style, outliers: Mapping[str, float]) -> ShownPair:
    return ShownPair(
        id=pair.pair_id,
        question=pair.question,
        positive=highlight(pair.positive_response, style),
        negative=highlight(pair.negative_response, style),
        markers=(style.count_markers(pair.positive_response), style.count_markers(pair.negative_response)),
        words=(len(pair.positive_response.split()), len(pair.negative_response.split())),
        cosine=outliers.get(pair.pair_id),
    )


def _provenance(vector: SteeringVector) -> dict[str, str]:
    known, how = vector.metadata, vector.extraction_config
    found = {
        "model": vector.model_name,
        "model revision": how.get("model_revision"),
        "numbers": how.get("dtype"),
        "recipe": how.get("recipe"),
        "learned": describe_learning(vector),
        "examples (n_shots)": how.get("n_shots"),
        "layers extracted": f"{vector.layer_indices[0]} to {vector.layer_indices[-1]} ({len(vector.layer_indices)})",
        "keys": how.get("keys"),
        "chat template": str(how.get("chat_template_sha256"))[:16],
        "teacher": known.get("teacher_model"),
        "dataset SHA-256": str(known.get("dataset_sha256"))[:16],
        "factory": known.get("factory_version"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _matrices(ledger: Ledger, sections: Sequence[StyleSection]) -> dict[str, Markup]:
    """Each vector on every style's markers, and the cosines between vectors."""
    made: dict[str, str] = {}
    vectors = [section.vector for section in sections if section.vector]
    if len(vectors) > 1:
        names = [vector.style_name for vector in vectors]
        cosines = [[first.cosine(second) for second in vectors] for first in vectors]
        title = "Cosines between the vectors"
        made["cosines"] = figures.matrix_figure("matrix-cosines", title, names, names, cosines)
    evaluated = [section for section in sections if section.answers]
    if len(evaluated) > 1:
        rows = {section.style.name: [row.answers["steered"].text for row in section.answers] for section in evaluated}
        rows["unsteered"] = [row.answers["unsteered"].text for row in evaluated[0].answers]
        styles = [section.style for section in evaluated]
        shares = [[sum(map(style.is_shown_in, texts)) / len(texts) for style in styles] for texts in rows.values()]
        title = "Share of answers that show each style's markers"
        names = [style.name for style in styles]
        made["specificity"] = figures.matrix_figure("matrix-specificity", title, list(rows), names, shares)
    return {name: Markup(svg) for name, svg in made.items()}  # figures.py escapes


def _versions() -> dict[str, str]:
    names = (DISTRIBUTION, "torch", "transformers", "celery", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def examples(page: Page, count: int = 3) -> list[AnsweredQuestion]:
    """Held-out questions that show a vector at its best: in the style only when steered, and fluent."""
    style = page.style

    def worth(row: AnsweredQuestion) -> tuple[bool, bool, float]:
        steered, unsteered = row.answers["steered"].text, row.answers["unsteered"].text
        fluent = style.is_shown_in(steered) and not is_looping(steered)
        return fluent, not style.is_shown_in(unsteered), distinct_ngrams(steered)

    return sorted(side_by_side(page), key=worth, reverse=True)[:count]
