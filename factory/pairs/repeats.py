"""Near-repeats among many short texts: which text says almost what an earlier one said.

Two texts are alike if they share enough of their neighbouring word pairs (Jaccard); case,
punctuation, accents and articles do not count. Each text is looked up under its rarest
word pairs alone: of two texts that are alike enough, a few such pairs are in both. So a hundred
thousand texts take seconds, and the answer depends on texts and order only. Words, no model.

What is known of the texts lies in a temporary SQLite database, which goes to disk when it is
larger than SQLite's cache of 2 MB: memory is the same for ten texts and for a million.
"""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise

from factory.errors import StoreError

SAME_QUESTION = 0.9  # of all word pairs of two questions: with one other word in 20, they are two
SAME_ANSWER = 0.8  # of all word pairs of two answers
ARTICLES = {"a", "an", "the"}
BUCKETS = 2**22  # counters of word pairs, a byte each; more pairs share counters, which costs time alone
SHARED = 3  # rare word pairs that two texts share before all their pairs are compared
MOST_LOOKED_AT = 64  # texts under one word pair: what stands in more texts than this tells none apart

SHELF = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE texts (number INTEGER PRIMARY KEY, pairs BLOB, numbers TEXT);
    CREATE TABLE rare (pair INTEGER, number INTEGER, PRIMARY KEY (pair, number)) WITHOUT ROWID;
    BEGIN;
"""


@dataclass(frozen=True)
class Words:
    """What of a text counts: its word pairs as sorted 32-bit hashes, and its numbers if they tell it from others."""

    pairs: array[int]
    numbers: str = ""

    def __len__(self) -> int:
        return len(self.pairs)


def plain_words(text: str) -> list[str]:
    """The words of ``text`` that count: without case, punctuation, accents and articles."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return [word for word in re.findall(r"\w+", plain) if word not in ARTICLES]


def words_of(text: str, *, numbers_tell: bool) -> Words:
    """The word pairs and numbers of ``text``; a text of one word has that word."""
    words = plain_words(text)
    pairs = [" ".join(pair) for pair in pairwise(words)] or words or [text]
    hashes = sorted({zlib.crc32(pair.encode("utf-8", "surrogatepass")) for pair in pairs})
    return Words(array("I", hashes), " ".join(re.findall(r"\d+", " ".join(words))) if numbers_tell else "")


def find_repeats(texts: Iterable[str], alike: float, *, numbers_tell: bool) -> dict[int, int]:
    """Texts that nearly repeat an earlier one: index -> index of the first text that it is alike to.

    A text that is a repeat itself is not compared with later ones. ``alike``: share of word pairs
    from which on two texts are one, above 0; ``numbers_tell``: texts with other numbers are two.
    Of texts under a word pair that more than :data:`MOST_LOOKED_AT` have as one of their rarest,
    only the first are compared.

    Raises:
        StoreError: the disk of temporary files is full or cannot be written.
    """
    try:
        with closing(sqlite3.connect("", isolation_level=None)) as shelf:
            shelf.executescript(SHELF)
            counts = _shelve(shelf, texts, numbers_tell=numbers_tell)
            return dict(_repeats(shelf, counts, alike))
    except sqlite3.Error as error:
        raise StoreError(
            f"near-repeats cannot be looked for: {error}; they need about 1 KB a text of disk where temporary "
            "files go: free some, or set SQLITE_TMPDIR to a folder with room"
        ) from error


def _shelve(shelf: sqlite3.Connection, texts: Iterable[str], *, numbers_tell: bool) -> bytearray:
    """Put the words of every text on the shelf; returns in about how many texts each word pair stands, 255 at most."""
    counts = bytearray(BUCKETS)
    for number, text in enumerate(texts):
        words = words_of(text, numbers_tell=numbers_tell)
        shelf.execute("INSERT INTO texts VALUES (?, ?, ?)", (number, words.pairs.tobytes(), words.numbers))
        for pair in words.pairs:
            bucket = pair % BUCKETS
            if counts[bucket] < 255:
                counts[bucket] += 1
    return counts


def _repeats(shelf: sqlite3.Connection, counts: bytearray, alike: float) -> Iterator[tuple[int, int]]:
    for number, *row in shelf.execute("SELECT number, pairs, numbers FROM texts ORDER BY number"):
        words = _words(*row)
        keys = _rarest(words, counts, alike)
        under = {key: [n for (n,) in shelf.execute("SELECT number FROM rare WHERE pair = ?", (key,))] for key in keys}
        candidates = _candidates(list(under.values()), min(SHARED, math.ceil(alike * alike * len(words) - 1e-9)))
        twin = next((earlier for earlier in candidates if are_alike(words, _fetch(shelf, earlier), alike)), None)
        if twin is not None:
            yield number, twin
            continue
        free = ((key, number) for key, found in under.items() if len(found) < MOST_LOOKED_AT)
        shelf.executemany("INSERT INTO rare VALUES (?, ?)", free)


def _candidates(found: list[list[int]], n_shared: int) -> list[int]:
    """Texts found under at least ``n_shared`` word pairs; under fewer if some are full and may leave a text out."""
    n_full = sum(len(numbers) >= MOST_LOOKED_AT for numbers in found)
    times = Counter(chain.from_iterable(found))
    return sorted(number for number, n in times.items() if n >= n_shared - n_full)


def _fetch(shelf: sqlite3.Connection, number: int) -> Words:
    return _words(*shelf.execute("SELECT pairs, numbers FROM texts WHERE number = ?", (number,)).fetchone())


def _words(pairs: bytes, numbers: str) -> Words:
    return Words(array("I", pairs), numbers)


def _rarest(words: Words, counts: bytearray, alike: float) -> list[int]:
    """So many of the rarest word pairs that a text alike enough must have :data:`SHARED` of them among its own.

    In a short text all may be fewer. Those that stand in no other text are left out: they lead nowhere.
    """
    ordered = sorted(words.pairs, key=lambda pair: (counts[pair % BUCKETS], pair))
    n_common = math.ceil(alike * len(ordered) - 1e-9)
    n_needed = len(ordered) - n_common + min(SHARED, n_common)
    return [pair for pair in ordered[:n_needed] if counts[pair % BUCKETS] > 1]


def are_alike(one: Words, other: Words, alike: float) -> bool:
    """Whether two texts have the same numbers and at least ``alike`` of their word pairs in common."""
    if one.numbers != other.numbers or min(len(one), len(other)) < alike * max(len(one), len(other)):
        return False
    shared = len(set(one.pairs) & set(other.pairs))
    return shared >= alike * (len(one) + len(other) - shared) - 1e-9
