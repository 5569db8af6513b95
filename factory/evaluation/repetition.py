"""Repetition across answers: sentences and phrases that a model says whatever it is asked.

Loops repeat within an answer; a vector can also make every answer say the same sentence ("The
evidence has limitations."), which is in the style, fluent, and worth nothing. Words only, no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

SHORTEST = 4  # words of a sentence that counts: shorter ones ("Step 1:", "Yes.") are shared by right
PHRASE = 6  # words of a phrase
COMMON = 3  # answers that share a phrase from which on it is a stock phrase
_SENTENCE = re.compile(r"[.!?\n]+")
_WORD = re.compile(r"\w+")


def repeated_sentences(answers: Sequence[str]) -> float:
    """Share of sentences that another answer has word for word, letter case and numbers aside."""
    by_answer = [set(_sentences(answer)) for answer in answers]
    counts = Counter(sentence for sentences in by_answer for sentence in sentences)
    n_sentences = sum(map(len, by_answer))
    shared = sum(counts[sentence] > 1 for sentences in by_answer for sentence in sentences)
    return round(shared / n_sentences, 4) if n_sentences else 0.0


def stock_phrases(answers: Sequence[str]) -> float:
    """Mean share of an answer's phrases that at least :data:`COMMON` answers have."""
    by_answer = [set(_phrases(answer)) for answer in answers]
    counts = Counter(phrase for phrases in by_answer for phrase in phrases)
    shares = [sum(counts[phrase] >= COMMON for phrase in phrases) / len(phrases) for phrases in by_answer if phrases]
    return round(sum(shares) / len(shares), 4) if shares else 0.0


def _sentences(answer: str) -> list[tuple[str, ...]]:
    sentences = [_words(text) for text in _SENTENCE.split(answer)]
    return [words for words in sentences if len(words) >= SHORTEST]


def _phrases(answer: str) -> list[tuple[str, ...]]:
    words = _words(answer)
    return [words[at : at + PHRASE] for at in range(len(words) - PHRASE + 1)]


def _words(text: str) -> tuple[str, ...]:
    """Lower-case words; numbers become one sign, as "Step 1" and "Step 2" begin the same sentence."""
    return tuple("#" if word.isdigit() else word for word in _WORD.findall(text.casefold()))
