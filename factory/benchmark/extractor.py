"""Final answers, extracted from what a model says, and whether they are right.

A model states its result in a few well-known ways; the last statement counts, as models correct
themselves. Where none is found, the last number (or the only letter, or the last line) of the text is taken,
and where there is none either the answer counts as unextractable, which is reported apart from wrong.
The expected answer is never looked for: a text that merely mentions it would count as right.
"""

from __future__ import annotations

import math
import re

from factory.benchmark.item import Item

_SIGN = "[-+\N{MINUS SIGN}]?"
_NUMBER = rf"{_SIGN}(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|{_SIGN}\.\d+"
_NUMBERS = re.compile(rf"(?<![\w.])[$€£]?\s?({_NUMBER})")
_LEADING = re.compile(rf"\W{{0,8}}?[$€£]?\s?({_NUMBER})")
# Where a result is stated, the most deliberate way first, and what follows on its line.
_STATED = (
    re.compile(r"\\boxed\{(?=([^{}]*)\})"),
    re.compile(r"####\s*(?=(.+))"),
    re.compile(r"<answer>\s*(?=(.+?)\s*(?:</answer>|$))", re.MULTILINE),
    re.compile(r"(?:answer|result)\W{0,6}(?:is|was|would be|will be|[=:])\s*(?=(.+))", re.IGNORECASE),
    re.compile(r"\banswer\W{1,6}(?=([$€£]?\d.*))", re.IGNORECASE),
)
_SENTENCE_END = re.compile(r"[.!?;]\s")
_LETTER_STATED = (
    r"\\boxed\{{\s*\(?([{either}])\)?\s*\}}",
    r"(?i:answer|choice)\W{{0,6}}(?i:is|:|=)?\W{{0,6}}(?i:option|choice)?\W{{0,4}}\b"
    r"(?:([{upper}])\b(?!')|([{lower}])(?=\W*$|[.):,*]))",  # "the answer is a ..." names no choice
    r"\b([{upper}])\b\W{{0,4}}(?:is|would be)\s+(?:the\s+)?(?:right|correct|best)",
)
_LETTER_FIRST = r"^\W{{0,4}}([{letters}])(?:[.):,]|\s*$|\*\*)"
_LETTER_ALONE = r"(?<![\w'])([{letters}])(?![\w'])"
TOLERANCE = 1e-6  # relative: rounding of printed decimals, not a near miss


def extract(item: Item, said: str) -> str | None:
    """The final answer in ``said``, in the form of ``item.answer``; None where there is none to be found."""
    if item.choices:
        return extract_letter(said, item)
    if as_number(item.answer) is not None:
        return extract_number(said)
    return extract_text(said)


def is_right(item: Item, extracted: str | None) -> bool:
    """Whether an extracted answer is the item's; numbers are compared as numbers, texts by their words."""
    if extracted is None:
        return False
    expected, found = as_number(item.answer), as_number(extracted)
    if not item.choices and expected is not None:
        return found is not None and math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=1e-9)
    return _plain(extracted) == _plain(item.answer)


def extract_number(said: str) -> str | None:
    """The number that a text states as its result, else its last number."""
    for pattern in _STATED:
        known = [number for number in map(_leading_number, pattern.findall(said)) if number]
        if known:
            return known[-1]
    numbers = _NUMBERS.findall(said)
    return str(numbers[-1]) if numbers else None


def _leading_number(stated: str) -> str | None:
    """The number that a statement begins with; of a calculation ("3 x 4 = 12") what it comes to."""
    sentence = _SENTENCE_END.split(stated)[0]
    if "=" in sentence:
        sentence = sentence.rpartition("=")[2]
    leading = _LEADING.match(sentence)
    return leading[1] if leading else None


def extract_text(said: str) -> str | None:
    """What a text states as its answer, else its last line."""
    for pattern in _STATED:
        stated = [text.strip() for text in pattern.findall(said) if text.strip()]
        if stated:
            return str(_SENTENCE_END.split(stated[-1])[0])
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else None


def extract_letter(said: str, item: Item) -> str | None:
    """The letter of the choice that a text settles on; a choice quoted word for word counts as its letter."""
    letters = item.letters
    for template in _LETTER_STATED:
        filled = template.format(upper=letters, lower=letters.lower(), either=letters + letters.lower())
        stated = [next(filter(None, match.groups())) for match in re.finditer(filled, said, re.MULTILINE)]
        if stated:
            return str(stated[-1]).upper()
    first = re.search(_LETTER_FIRST.format(letters=letters), said)
    if first:
        return first[1]
    quoted = [letter for letter, choice in zip(letters, item.choices, strict=False) if _quotes(said, choice)]
    if len(quoted) == 1:
        return quoted[0]
    # "A" is also a word: alone it counts only where no other letter stands beside it.
    alone = set(re.findall(_LETTER_ALONE.format(letters=letters), said))
    return alone.pop() if len(alone) == 1 and alone != {"A"} else None


def _quotes(said: str, choice: str) -> bool:
    words = choice.strip().rstrip(".")
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said, re.IGNORECASE) is not None


def _plain(text: str) -> str:
    """A short text without what decorates it: case, quotes, emphasis, a closing full stop."""
    return " ".join(text.casefold().split()).strip("\"'`*_ ").rstrip(".").strip("\"'`*_ ")


def as_number(text: str) -> float | None:
    """A number as people write it (``1,200``, ``$3.50``, ``3/4``), or None."""
    clean = text.strip().replace(",", "").replace("\N{MINUS SIGN}", "-").lstrip("$€£ ").rstrip(".%")
    try:
        if "/" in clean:
            above, below = clean.split("/", 1)
            return float(above) / float(below)
        return float(clean)
    except (ValueError, ZeroDivisionError):
        return None
