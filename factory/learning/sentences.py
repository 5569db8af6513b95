"""Sentences of a response: where it may be cut, and how it would say one of them again. Words only, no model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from factory.files import sha256_of

SHORTEST = 4  # words of a sentence that is said again: fewer ("Yes.") are repeated by right
_SENTENCE = re.compile(r"\s*(?:\d+[.)]\s)?\S.*?(?:[.!?](?=\s)|$)", re.DOTALL | re.MULTILINE)
_OPENING = re.compile(r"\s*(?:\S+\s+){2}\S+")
_NUMBERED = re.compile(r"(?P<before>\s*(?:\w+ )?)(?P<number>\d+)(?P<after>[:.)])")


def split_sentences(text: str) -> list[str]:
    """The sentences and lines of ``text``, each with the white space before it; joined they are the text."""
    return _SENTENCE.findall(text.strip())


@dataclass(frozen=True)
class Loop:
    r"""The beginning of a response, and its last sentence again.

    ``before`` is everything up to the repetition, and ``again`` the words that are repeated. What sentences
    begin with may come again by right and is in ``before``: the number that a list would give to the next
    ("Step 2: ...\nStep 3:"), or three words ("Imagine that you").
    """

    before: str
    again: str


def loop_of(response: str) -> Loop | None:
    """``response`` up to one of its first two sentences, and that one again; None if none is long enough.

    Which sentence it is depends on the response alone.
    """
    sentences = split_sentences(response)
    long = [at for at, sentence in enumerate(sentences[:2]) if len(sentence.split()) >= SHORTEST]
    if not long:
        return None
    at = long[int(sha256_of(response)[:8], 16) % len(long)]
    said, sentence = "".join(sentences[: at + 1]), sentences[at]
    sentence = sentence if at else f"{_gap(sentences)}{sentence}"
    numbered = _NUMBERED.match(sentence)
    if not numbered:
        opening = _OPENING.match(sentence)
        at = opening.end() if opening else 0
        return Loop(said + sentence[:at], sentence[at:])
    next_number = f"{numbered['before']}{int(numbered['number']) + 1}{numbered['after']}"
    return Loop(said + next_number, sentence[numbered.end() :])


def _gap(sentences: list[str]) -> str:
    """The white space between the first two sentences."""
    second = sentences[1] if len(sentences) > 1 else " "
    return second[: len(second) - len(second.lstrip())] or " "
