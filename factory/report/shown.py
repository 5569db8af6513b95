"""What a report shows to be read: answers side by side, and a dataset's pairs, with the style's markers highlighted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import Markup, escape

from factory.evaluation.thought import answers_of
from factory.pairs.fluency import distinct_ngrams, is_looping
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style, find_markers
from factory.run.artifacts import batch_of
from factory.run.page import Page
from factory.vector.quality import Quality
from factory.vector.vector import SteeringVector

MOST_PAIRS = 300  # a style; a page with more is slow to open
COMPARED = ("unsteered", "prompted", "steered")


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
    spans = sorted(match.span() for match in find_markers(style.markers, text))
    parts, at = [], 0
    for start, end in spans:
        if start < at or start == end:
            continue
        parts += [escape(text[at:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def examples(page: Page, count: int = 3) -> list[AnsweredQuestion]:
    """Held-out questions that show a vector at its best: in the style only when steered, and fluent."""
    style = page.style

    def worth(row: AnsweredQuestion) -> tuple[bool, bool, float]:
        steered, unsteered = row.answers["steered"].text, row.answers["unsteered"].text
        fluent = style.is_shown_in(steered) and not is_looping(steered)
        return fluent, not style.is_shown_in(unsteered), distinct_ngrams(steered)

    return sorted(side_by_side(page), key=worth, reverse=True)[:count]


def browsed_pairs(page: Page, vector: SteeringVector | None) -> list[ShownPair]:
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


def rejected_pairs(page: Page, vector: SteeringVector | None) -> list[RejectedPair]:
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
