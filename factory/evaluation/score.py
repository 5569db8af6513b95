"""Scores of answers: how many show a style, and whether they are still fluent. Words only, no model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from factory.evaluation.bootstrap import bootstrap_interval, gain_interval, share_interval
from factory.evaluation.figures import AnswerFigures, Interval
from factory.evaluation.repetition import repeated_sentences, stock_phrases
from factory.evaluation.surprise import Surprise
from factory.pairs.fluency import distinct_ngrams, is_looping
from factory.pairs.styles import Style


def score(answers: Sequence[str], style: Style, surprises: Sequence[Surprise | None] = ()) -> AnswerFigures:
    """Figures of ``answers``; ``surprises``: how the unsteered model reads the first of them."""
    shown = [style.count_markers(answer) for answer in answers]
    in_style = [int(style.is_shown_in(answer)) for answer in answers]
    read = [surprise for surprise in surprises if surprise]
    relevances = tuple(surprise.relevance if surprise else None for surprise in surprises)
    relevant = [value for value in relevances if value is not None]
    return AnswerFigures(
        n=len(answers),
        share=round(fmean(in_style), 4),
        interval=share_interval(sum(in_style), len(answers)),
        markers=round(fmean(shown), 4),
        words=round(fmean(len(answer.split()) for answer in answers), 2),
        distinct_4grams=round(fmean(map(distinct_ngrams, answers)), 4),
        loops=round(fmean(map(is_looping, answers)), 4),
        perplexity=round(median(surprise.perplexity for surprise in read), 3) if read else None,
        relevance=round(fmean(relevant), 4) if relevant else None,
        repeated_sentences=repeated_sentences(answers),
        stock_phrases=stock_phrases(answers),
        in_style=tuple(in_style),
        shown=tuple(shown),
        relevances=relevances,
    )


def gain(steered: Sequence[float], unsteered: Sequence[float]) -> tuple[float, Interval]:
    """Mean gain by question, and its 95 % interval (paired: the same questions in both).

    Of yes and no it is that of a share, of counts a bootstrap.
    """
    differences = [after - before for after, before in zip(steered, unsteered, strict=True)]
    mean = round(fmean(differences), 4)
    if {*steered, *unsteered} <= {0, 1}:
        won, lost = differences.count(1), differences.count(-1)
        return mean, gain_interval(won, lost, len(differences))
    return mean, bootstrap_interval(differences)
