"""Near-repeats among many short texts: which text says almost what an earlier one said.

Two texts are alike if they share enough of their neighbouring word pairs (Jaccard); case,
punctuation, accents and articles do not count. Each text is looked up under its rarest
word pairs alone: of two texts that are alike enough, one such pair is in both. So a hundred
thousand texts take seconds, and the answer depends on texts and order only. Words, no model.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SAME_QUESTION = 0.9  # of all word pairs of two questions: with one other word in 20, they are two
SAME_ANSWER = 0.8  # of all word pairs of two answers
ARTICLES = {"a", "an", "the"}
BUCKETS = 2**20  # counters of word pairs; more pairs share counters, which costs time and changes nothing
MOST_LOOKED_AT = 64  # texts under one word pair: what stands in more texts than this tells none apart


@dataclass(frozen=True)
class Words:
    """What of a text counts: its word pairs as sorted 32-bit hashes, and its numbers if they tell it from others."""

    pairs: array[int]
    numbers: str = ""

    def __len__(self) -> int:
        return len(self.pairs)


def words_of(text: str, *, numbers_tell: bool) -> Words:
    """The word pairs and numbers of ``text``; a text of one word has that word."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    words = [word for word in re.findall(r"\w+", plain) if word not in ARTICLES]
    pairs = [" ".join(pair) for pair in pairwise(words)] or words or [text]
    hashes = sorted({zlib.crc32(pair.encode("utf-8", "surrogatepass")) for pair in pairs})
    return Words(array("I", hashes), " ".join(re.findall(r"\d+", plain)) if numbers_tell else "")


def find_repeats(texts: Iterable[str], alike: float, *, numbers_tell: bool) -> dict[int, int]:
    """Texts that nearly repeat an earlier one: index -> index of the first text that it is alike to.

    A text that is a repeat itself is not compared with later ones. ``alike``: share of word pairs
    from which on two texts are one, above 0; ``numbers_tell``: texts with other numbers are two.
    Of texts under a word pair that more than :data:`MOST_LOOKED_AT` have as one of their rarest,
    only the first are compared.
    """
    known = [words_of(text, numbers_tell=numbers_tell) for text in texts]
    counts = _count(known)
    under: dict[int, list[int]] = {}
    repeats: dict[int, int] = {}
    for number, words in enumerate(known):
        keys = _rarest(words, counts, alike)
        twin = _first_alike(words, keys, under, known, alike)
        if twin is not None:
            repeats[number] = twin
            continue
        for key in keys:
            found = under.setdefault(key, [])
            if len(found) < MOST_LOOKED_AT:
                found.append(number)
    return repeats


def _count(known: Sequence[Words]) -> array[int]:
    """In about how many texts each word pair stands."""
    counts = array("I", [0]) * BUCKETS
    for words in known:
        for pair in words.pairs:
            counts[pair % BUCKETS] += 1
    return counts


def _rarest(words: Words, counts: Sequence[int], alike: float) -> list[int]:
    """So many of the rarest word pairs that a text alike enough must have one of them among its own.

    Those that stand in no other text are left out: they lead nowhere.
    """
    ordered = sorted(words.pairs, key=lambda pair: (counts[pair % BUCKETS], pair))
    n_needed = len(ordered) - math.ceil(alike * len(ordered) - 1e-9) + 1
    return [pair for pair in ordered[:n_needed] if counts[pair % BUCKETS] > 1]


def _first_alike(
    words: Words, keys: Sequence[int], under: dict[int, list[int]], known: Sequence[Words], alike: float
) -> int | None:
    candidates = sorted({number for key in keys for number in under.get(key, ())})
    return next((number for number in candidates if are_alike(words, known[number], alike)), None)


def are_alike(one: Words, other: Words, alike: float) -> bool:
    """Whether two texts have the same numbers and at least ``alike`` of their word pairs in common."""
    if one.numbers != other.numbers or min(len(one), len(other)) < alike * max(len(one), len(other)):
        return False
    shared = len(set(one.pairs) & set(other.pairs))
    return shared >= alike * (len(one) + len(other) - shared) - 1e-9
