"""Quality gates: what a teacher's answers must be before the target model reads them.

Every verdict is written into the pair (``checks``). A failed gate costs one regeneration; then
the pair is rejected with its reasons. What only deserves a look is a warning. This module asks
nobody: the optional judge is judge.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rapidfuzz import fuzz

from factory.errors import PairRejected
from factory.pairs.fluency import distinct_ngrams
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style

MIN_DISTINCT = 0.5  # distinct 4-grams of words: below it an answer goes in circles
SAME_TEXT = 90.0  # similarity in percent: above it two texts are one
COPIED = 8  # words in a row from the instruction are a quotation of it
LENGTHS = (0.5, 2.0)  # words of the positive to words of the negative: beyond it a warning

_REFUSAL = re.compile(
    r"^\W*(?:i['\u2019]?m sorry|sorry, (?:but )?i|i apologi[sz]e"
    r"|i (?:can(?:no|['\u2019])t|am unable to|am not able to|won['\u2019]t)\b"
    r"|as an ai\b|as a (?:large )?language model\b)",
    re.IGNORECASE,
)
_LEAKAGE = re.compile(
    r"<\|[^|>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?think>|<\uff5c|<(?:start|end)_of_turn>"
    r"|^\s*(?:user|assistant|system|human|question)\s*:"
    r"|\bas (?:instructed|requested|you asked|per your (?:request|instructions?))\b",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Verdict:
    """What the gates say: measured ``figures``, and the reasons why it failed, if it did."""

    figures: Mapping[str, object]
    reasons: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return not self.reasons


def check_answer(text: str, style: Style, prompt: str, question: str, *, positive: bool) -> Verdict:
    """Hold one answer against the gates that concern it alone.

    ``positive``: the answer should be in the style; otherwise it should not.
    """
    distinct = round(distinct_ngrams(text), 3)
    failed = {
        "empty": not text.strip(),
        "refusal": bool(_REFUSAL.search(text)),
        "leakage": leaks(text, style, prompt, question),
        "repetition": distinct < MIN_DISTINCT,
        "no_markers": positive and bool(style.markers) and not style.is_shown_in(text),
        "markers_in_negative": not positive and style.is_shown_in(text),
    }
    if not style.markers:
        failed["no_markers"] = failed["markers_in_negative"] = False
    figures = {"words": len(text.split()), "distinct_4grams": distinct, "markers": style.count_markers(text)}
    return Verdict(figures, [reason for reason, found in failed.items() if found])


def leaks(text: str, style: Style, prompt: str, question: str) -> bool:
    """Whether an answer shows how it was asked for: a chat token, a role label, or the instruction itself."""
    name = style.name.lower()
    named = {name, name.replace("_", " "), name.replace("_", "-")} if "_" in name else {name + " style"}
    lower = text.lower()
    if _LEAKAGE.search(text) or any(word in lower for word in named):
        return True
    return copies(lower, prompt.replace(question, " \n ").lower())


def copies(text: str, instruction: str, n_words: int = COPIED) -> bool:
    """Whether ``text`` repeats ``n_words`` words in a row of ``instruction``."""
    spoken = " " + " ".join(re.findall(r"\w+", text)) + " "
    for part in instruction.split("\n"):
        words = re.findall(r"\w+", part)
        if any(f" {' '.join(words[i : i + n_words])} " in spoken for i in range(len(words) - n_words + 1)):
            return True
    return False


def compare_answers(positive: str, negative: str) -> Verdict:
    """Hold the two answers against each other: identical ones fail, unequal lengths are a warning."""
    ratio = len(positive.split()) / max(1, len(negative.split()))
    similarity = fuzz.ratio(positive, negative)
    warnings = [] if LENGTHS[0] <= ratio <= LENGTHS[1] else ["length_ratio"]
    figures = {"length_ratio": round(ratio, 3), "similarity": round(similarity, 1), "warnings": warnings}
    return Verdict(figures, ["identical"] if similarity >= SAME_TEXT else [])


def find_duplicates(pairs: Sequence[ContrastivePair]) -> dict[str, str]:
    """Pairs whose positive answer nearly repeats that of an earlier pair: pair id -> the earlier one's."""
    kept: list[ContrastivePair] = []
    repeats: dict[str, str] = {}
    for pair in pairs:
        twin = next((other for other in kept if _are_one(pair, other)), None)
        if twin is None:
            kept.append(pair)
        else:
            repeats[pair.pair_id] = twin.pair_id
    return repeats


def _are_one(pair: ContrastivePair, other: ContrastivePair) -> bool:
    return fuzz.ratio(pair.positive_response, other.positive_response, score_cutoff=SAME_TEXT) > 0


def reject(question: str, verdict: Verdict, **evidence: object) -> PairRejected:
    """The rejection of a pair whose answers failed: its first reason counts, all are listed."""
    message = f"the answers to {question!r} failed: {', '.join(verdict.reasons)}"
    return PairRejected(verdict.reasons[0], message, {"reasons": verdict.reasons, **evidence})
