"""The report of a run: one HTML page with pictures, that needs no network.

Everything is read from the store: the ledger, the vectors with their evaluation, the answers and
the pairs. The page is ``factory/data/report.html.j2``; its figures come from figures.py.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from factory.benchmark.outcome import TaskResult, read_tasks
from factory.evaluation.agreement import describe_judging
from factory.evaluation.evaluation import Evaluation
from factory.extras import DISTRIBUTION
from factory.pairs.styles import Style
from factory.report import figures
from factory.report.shown import (
    AnsweredQuestion,
    RejectedPair,
    ShownPair,
    browsed_pairs,
    rejected_pairs,
    side_by_side,
)
from factory.report.timing import time_phases, time_workers, timeline
from factory.run.ledger import Ledger
from factory.run.page import Page
from factory.run.progress import StyleProgress, progress_of
from factory.vector.learned import describe_learning
from factory.vector.quality import Quality
from factory.vector.statistics import ENOUGH
from factory.vector.vector import SteeringVector

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.html"
ENOUGH_HALVES = ENOUGH / (2 - ENOUGH)  # the split-half cosine at which the whole's reliability is ENOUGH


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
        pairs=browsed_pairs(page, vector),
        rejected=rejected_pairs(page, vector),
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
        if len(evaluation.cells) > 1:
            made["sweep"] = figures.sweep_figure(f"{style}-sweep", evaluation.cells, baseline)
        made["compared"] = figures.compared_figure(f"{style}-compared", evaluation.measured)
        if evaluation.measured["steered"].relevance is not None:
            made["topic"] = figures.topic_figure(f"{style}-topic", evaluation.measured)
        if len(evaluation.gate) > 1:
            made["probe"] = figures.probe_figure(f"{style}-probe", evaluation.gate)
    return {name: Markup(svg) for name, svg in made.items()}  # figures.py escapes


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
