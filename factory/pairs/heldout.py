"""Held-out questions: those that no pair asks. What a vector was made from cannot measure it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from factory.files import sha256_of
from factory.pairs.repeats import SAME_QUESTION, are_alike, plain_words, words_of

QUESTION_HASHES = "question_hashes"  # in a vector's metadata: the questions that its pairs ask
HASH_DIGITS = 12  # hexadecimal ones; of a million questions none is taken for another


def find_asked(held_out: Sequence[str], asked: Iterable[str]) -> dict[str, str]:
    """Held-out questions that are asked, exactly or nearly: each with the first question that it repeats.

    Takes each question of ``asked`` once; they may be many.
    """
    ours = [words_of(question, numbers_tell=True) for question in held_out]
    under: defaultdict[int, list[int]] = defaultdict(list)  # word pair -> the held-out questions that have it
    for at, words in enumerate(ours):
        for pair in words.pairs:
            under[pair].append(at)
    found: dict[int, str] = {}
    for question in asked:
        theirs = words_of(question, numbers_tell=True)
        shared = Counter(at for pair in theirs.pairs for at in under.get(pair, ()))
        near = (at for at, count in shared.items() if count >= SAME_QUESTION * len(theirs) - 1e-9)
        for at in near:
            if at not in found and are_alike(ours[at], theirs, SAME_QUESTION):
                found[at] = question
    return {held_out[at]: found[at] for at in sorted(found)}


def hash_question(question: str) -> str:
    """A short hash of a question; case, punctuation, accents and articles do not count."""
    return sha256_of(" ".join(plain_words(question)) or question)[:HASH_DIGITS]


def hash_questions(questions: Iterable[str]) -> list[str]:
    """The hashes of ``questions``, sorted, each once."""
    return sorted({hash_question(question) for question in questions})


def find_hashed(held_out: Iterable[str], hashes: Collection[str]) -> list[str]:
    """Held-out questions whose hashes are among ``hashes``."""
    known = set(hashes)
    return [question for question in held_out if hash_question(question) in known]


def asked_hashes(metadata: Mapping[str, object]) -> list[str] | None:
    """The hashes of the questions that a vector's pairs ask; None where its metadata do not say."""
    hashes = metadata.get(QUESTION_HASHES)
    return [str(part) for part in hashes] if isinstance(hashes, list) else None
