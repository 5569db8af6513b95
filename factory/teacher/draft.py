"""A draft of a style: what the teacher makes of one line about it.

The teacher writes no regular expressions. It names words and phrases, which become patterns here, so that no
pattern can be wrong or slow; and it writes one answer in the style and one without, on which they are tried.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence

from factory.errors import BadReply, TeacherBusy
from factory.files import whole_text
from factory.frozen import Frozen
from factory.pairs.styles import find_markers
from factory.teacher.client import Reply, Teacher

ANSWER_TOKENS = 2000  # a draft has about 900
ATTEMPTS = (0, 1)  # the second is another request, where the first gave nothing usable
WAITS = (2.0, 6.0)  # s before a busy teacher is asked again; a person waits
NEEDED = 2  # markers that an answer in the style shows
LONGEST = {"instruction": 800, "marker": 60, "opening": 80, "question": 240}  # characters
MOST = {"markers": 12, "openings": 5, "questions": 16}
FEWEST_QUESTIONS = 4

ASKED = """A language model shall answer in a style that is described in one line. Write what is needed to ask for this style, and to recognise it.

Style: {description}

Reply with one JSON object and nothing else, with these keys:
"instruction": two to four sentences that tell a model how to answer in this style, whatever the question is. Begin with a verb, and name no topic.
"markers": a list of 6 to 10 words or short phrases that almost every answer in the style contains and plain answers almost never do. Write # in place of a number. Put ^ in front of what counts only where a line begins.
"openings": a list of 3 ways in which an answer in the style begins, each of 1 to 5 words.
"questions": a list of 12 questions from different fields, each one sentence, that can be answered in 80 words in this style and in plain prose.
"example": an answer of 60 to 90 words to the first question, in the style, with at least three of the markers in it.
"plain": an answer of 60 to 90 words to the same question in ordinary prose, without the style and without any of the markers."""  # noqa: E501


class Draft(Frozen):
    """What a style is asked for by, and recognised by. ``markers`` are regular expressions."""

    instruction: str
    markers: tuple[str, ...]
    min_markers: int
    openings: tuple[str, ...]
    questions: tuple[str, ...]


def draft_prompt(description: str) -> str:
    """What the teacher is asked for a style that is described in one line."""
    return ASKED.replace("{description}", _line(description))


def ask_for_draft(
    teacher: Teacher, description: str, *, wait: Callable[[float], object] = time.sleep
) -> tuple[Draft, list[Reply]]:
    """The teacher's draft of a style, and the replies that it took: two, where the first could not be used.

    Raises:
        BadReply: neither could be used; says why.
        TeacherBusy, TeacherRefused, PairRejected: as for :meth:`factory.teacher.client.Teacher.ask`.
    """
    replies: list[Reply] = []
    problem = BadReply("empty", "the teacher sent nothing")
    for attempt in ATTEMPTS:
        try:
            replies.append(_ask(teacher, draft_prompt(description), attempt, wait))
            return read_draft(replies[-1].text), replies
        except BadReply as error:
            problem = error
    raise problem


def _ask(teacher: Teacher, prompt: str, attempt: int, wait: Callable[[float], object]) -> Reply:
    for seconds in WAITS:
        try:
            return teacher.ask(prompt, attempt)
        except TeacherBusy as error:
            if (error.retry_after or 0) > max(WAITS):
                raise
            wait(error.retry_after or seconds)
    return teacher.ask(prompt, attempt)


def read_draft(reply: str) -> Draft:
    """The draft in a teacher's reply; what stands around the JSON object does not matter.

    Markers that the plain answer shows too are left out.

    Raises:
        BadReply: no JSON object, a part is missing, or the markers do not tell the two answers apart.
    """
    content = _object_in(whole_text(reply))
    instruction = _line(content.get("instruction"))[: LONGEST["instruction"]].replace("{question}", "the question")
    questions = [text for text in _lines(content, "questions", "question") if not text.startswith("#")]
    markers = [as_pattern(text) for text in _lines(content, "markers", "marker") if re.search(r"\w", text)]
    example, plain = (str(content.get(key) or "") for key in ("example", "plain"))
    telling = tuple(marker for marker in dict.fromkeys(markers) if not _count([marker], plain))
    if not instruction:
        raise _unusable("it holds no instruction")
    if len(questions) < FEWEST_QUESTIONS:
        raise _unusable(f"it holds {len(questions)} questions, not {FEWEST_QUESTIONS} or more")
    shown = _count(telling, example)
    if not shown:
        raise _unusable("its markers do not tell its example in the style from the plain one")
    return Draft(
        instruction=instruction,
        markers=telling,
        min_markers=min(NEEDED, shown),
        openings=tuple(_lines(content, "openings", "opening")),
        questions=tuple(questions),
    )


def as_pattern(phrase: str) -> str:
    """The regular expression of a phrase: ``#`` is any number, ``^`` in front the beginning of a line."""
    at_start, words = phrase.startswith("^"), phrase.lstrip("^ ")
    pattern = r"\s+".join(re.escape(word).replace(r"\#", r"\d+") for word in words.split())
    before = r"^\W*" if at_start else r"\b" if re.match(r"[\w#]", words) else ""
    return f"{before}{pattern}" + (r"\b" if re.search(r"[\w#]$", words) else "")


def _count(markers: Sequence[str], text: str) -> int:
    return sum(1 for _ in find_markers(markers, text))


def _object_in(reply: str) -> Mapping[str, object]:
    begin, end = reply.find("{"), reply.rfind("}")
    try:
        content = json.loads(reply[begin : end + 1], strict=False) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _unusable("it is not the JSON object that was asked for")
    return content


def _lines(content: Mapping[str, object], key: str, kind: str) -> list[str]:
    """The texts of a list, each as one line; those that are none, or too long, are left out."""
    found = content.get(key)
    lines = [_line(text) for text in found] if isinstance(found, list) else []
    fitting = (line for line in lines if line and len(line) <= LONGEST[kind])
    return list(dict.fromkeys(fitting))[: MOST[key]]


def _line(text: object) -> str:
    """Text on one line, of characters that can be printed; nothing where it is no text."""
    printable = (character if character.isprintable() else " " for character in text) if isinstance(text, str) else ""
    return " ".join("".join(printable).split())


def _unusable(why: str) -> BadReply:
    return BadReply("draft", f"the teacher's draft of the style cannot be used: {why}")
