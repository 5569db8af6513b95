"""Fluency of an answer, told from its words alone: how much it repeats itself, and whether it loops."""

from __future__ import annotations

import re

LOOP = 0.5  # share of distinct word 4-grams below which an answer is a loop
LEAST_NGRAMS = 4  # a shorter answer cannot loop


def distinct_ngrams(text: str, n: int = 4) -> float:
    """Share of distinct word ``n``-grams in ``text``: 1 for no repetition, near 0 for a loop.

    Numbers count as one word: "Step 1: Step 2: Step 3:" says nothing new at each step.
    Source: distinct-n (Li et al., arXiv 1510.03055).
    """
    words = re.sub(r"\d+", "#", text.lower()).split()
    ngrams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def is_looping(text: str) -> bool:
    """Whether ``text`` says the same again and again."""
    return len(text.split()) >= LEAST_NGRAMS + 3 and distinct_ngrams(text) < LOOP
