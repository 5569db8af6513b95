"""Final answers, extracted from what a model says, and whether they are right.

A model states its result in a few well-known ways; the last statement counts, as models correct
themselves. Where none is found, the last number (or the only letter) of the text is taken, and
where there is none either the answer counts as unextractable, which is reported apart from wrong.
"""

from __future__ import annotations

import math
import re

from factory.benchmark.item import Item

_SIGN = "[-+\N{MINUS SIGN}]?"
_NUMBER = rf"{_SIGN}(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|{_SIGN}\.\d+"
_NUMBERS = re.compile(rf"(?<![\w.])[$€£]?\s?({_NUMBER})")
# Statements of a result, the most deliberate first.
_STATED = (
    re.compile(rf"\\boxed\{{\s*[$€£]?\s?({_NUMBER})"),
    re.compile(rf"####\s*[$€£]?\s?({_NUMBER})"),
    re.compile(
        rf"(?:final\s+)?(?:answer|result)\W{{0,6}}(?:is|=|:|was|would be|will be)?\W{{0,8}}?[$€£]?\s?({_NUMBER})",
        re.IGNORECASE,
    ),
)
_LETTER_STATED = (
    r"\\boxed\{{\s*\(?([{letters}])\)?\s*\}}",
    r"(?:answer|choice|option)\W{{0,6}}(?:is|:|=)?\W{{0,6}}(?:option|choice)?\W{{0,4}}\b([{letters}])\b(?!')",
    r"\b([{letters}])\b\W{{0,4}}(?:is|would be)\s+(?:the\s+)?(?:right|correct|best)",
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
    found = re.search(re.escape(item.answer), said, re.IGNORECASE)
    return found[0] if found else (said.strip() or None)


def is_right(item: Item, extracted: str | None) -> bool:
    """Whether an extracted answer is the item's; numbers are compared as numbers."""
    if extracted is None:
        return False
    expected, found = as_number(item.answer), as_number(extracted)
    if not item.choices and expected is not None:
        return found is not None and math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=1e-9)
    return extracted.strip().casefold() == item.answer.strip().casefold()


def extract_number(said: str) -> str | None:
    """The number that a text states as its result, else its last number."""
    for pattern in _STATED:
        stated = pattern.findall(said)
        if stated:
            return str(stated[-1])
    numbers = _NUMBERS.findall(said)
    return str(numbers[-1]) if numbers else None


def extract_letter(said: str, item: Item) -> str | None:
    """The letter of the choice that a text settles on; a choice quoted word for word counts as its letter."""
    letters = item.letters
    for template in _LETTER_STATED:
        stated = re.findall(template.format(letters=letters + letters.lower()), said, re.IGNORECASE)
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
