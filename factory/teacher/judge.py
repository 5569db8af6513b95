"""The optional judge: a model that scores an answer's style and coherence by a rubric, or compares two.

Each answer is scored alone, without a word on where it comes from, so the judge cannot favour
one. Two answers are compared in both orders, as judges favour a place (Zheng et al. 2023, arXiv 2306.05685). A
reply without scores counts as ``unreadable`` and decides nothing. Small models are useless
here: SmolLM2 and Qwen-0.5B give 95 to everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from factory.errors import BadReply, PairRejected
from factory.frozen import Frozen
from factory.pairs.styles import Style
from factory.teacher.client import Reply, Teacher
from factory.teacher.gates import Verdict
from factory.teacher.spec import TeacherSpec

IN_STYLE = 60  # of 100: a positive below it is not in the style
PLAIN = 40  # of 100: a negative above it is in the style
COHERENT = 50  # of 100: below it an answer is not worth reading

RUBRIC = """You grade a text by a rubric. Do not answer its question.

Style to look for: {description}
{characteristics}

Question: {question}

Text:
\"\"\"
{text}
\"\"\"

Give two whole numbers from 0 to 100.
style: 0 = the style is absent, 50 = traces of it, 100 = every part of the text is in the style.
coherence: 0 = unreadable or off the question, 50 = understandable with flaws, 100 = clear and to the point.

Reply with these two lines and nothing else:
style: <number>
coherence: <number>"""


COMPARISON = """You compare two texts about one question. Do not answer it.

Style to look for: {description}
{characteristics}

Question: {question}

Text A:
\"\"\"
{first}
\"\"\"

Text B:
\"\"\"
{second}
\"\"\"

Which text is more in the style and still answers the question?

Reply with this line and nothing else:
better: <A, B or tie>"""

Choice = Literal["A", "B", "tie"]
Read = TypeVar("Read")


def judge_prompt(style: Style, question: str, text: str) -> str:
    """What the judge is asked about one answer."""
    return _filled(RUBRIC, style, question=question, text=text)


def comparison_prompt(style: Style, question: str, first: str, second: str) -> str:
    """What the judge is asked about two answers."""
    return _filled(COMPARISON, style, question=question, first=first, second=second)


def _filled(rubric: str, style: Style, **texts: str) -> str:
    """The rubric with its places filled at once, so that braces in a text stay what they are."""
    traits = "\n".join(f"- {trait}" for trait in style.characteristics)
    known = {"description": style.description, "characteristics": traits, **texts}
    return re.sub(r"\{(\w+)\}", lambda found: known[found[1]], rubric)


class Scores(Frozen):
    """What a judge gives an answer, each from 0 to 100."""

    style: int
    coherence: int


class Unreadable(Frozen):
    """An answer without scores: why, or what the judge said instead."""

    unreadable: str


def read_scores(reply: str) -> Scores | None:
    """Style and coherence from a judge's reply, or None if it holds no such numbers."""
    scores: dict[str, int] = {}
    for name in ("style", "coherence"):
        found = re.search(rf"\b{name}\b\W{{0,4}}\s*(\d{{1,3}})\b", reply, re.IGNORECASE)
        if not found or int(found[1]) > 100:
            return None
        scores[name] = int(found[1])
    return Scores.model_validate(scores)


def read_choice(reply: str) -> Choice | None:
    """Which text a judge's reply names as the better one, or None if it names none."""
    found: list[str] = re.findall(r"\bbetter\W{1,6}(?:text\W{1,3})?(a|b|tie)\b", reply, re.IGNORECASE)
    choices: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie"}
    return choices[found[0].lower()] if len({choice.lower() for choice in found}) == 1 else None


def judge_spec(spec: TeacherSpec, model: str) -> TeacherSpec:
    """How a judge is asked: at the teacher's endpoint, for the likeliest scores."""
    temperature = None if spec.temperature is None else 0.0  # a server may know no temperature
    named = {"model": model, "requested_model": model, "judge_model": None}
    return spec.model_copy(update={**named, "temperature": temperature})


def as_judge(teacher: Teacher, model: str) -> Teacher:
    """The teacher's endpoint with the judge behind it."""
    return replace(teacher, spec=judge_spec(teacher.spec, model))


def judge_answer(judge: Teacher, style: Style, question: str, text: str) -> tuple[Scores | Unreadable, Reply | None]:
    """What the judge says of one answer, and its reply if there was one.

    Raises:
        TeacherBusy, TeacherRefused: as for the teacher.
    """
    return ask_judge(judge, judge_prompt(style, question, text), read_scores)


def ask_judge(
    judge: Teacher, prompt: str, read: Callable[[str], Read | None]
) -> tuple[Read | Unreadable, Reply | None]:
    """What ``read`` makes of the judge's reply to ``prompt``, and the reply if there was one.

    Raises:
        TeacherBusy, TeacherRefused: as for the teacher.
    """
    try:
        reply = judge.ask(prompt)
    except (BadReply, PairRejected) as error:  # the judge failed, not the answer
        return Unreadable(unreadable=error.reason), None
    said = read(reply.text)
    return (Unreadable(unreadable=reply.text[:80]) if said is None else said), reply


def judge_pair(
    judge: Teacher, style: Style, question: str, positive: str, negative: str
) -> tuple[Verdict, list[Reply]]:
    """The judge's verdict on both answers of a pair, and the replies that it took.

    Raises:
        TeacherBusy, TeacherRefused: as for the teacher.
    """
    said: dict[str, Scores | Unreadable] = {}
    replies: list[Reply] = []
    for side, text in (("positive", positive), ("negative", negative)):
        said[side], reply = judge_answer(judge, style, question, text)
        replies += [reply] if reply else []
    return Verdict({"judge": {side: scores.model_dump() for side, scores in said.items()}}, _weigh(said)), replies


def _weigh(said: Mapping[str, Scores | Unreadable]) -> list[str]:
    reasons: list[str] = []
    for side, scores in said.items():
        if isinstance(scores, Unreadable):
            continue
        in_style = scores.style >= IN_STYLE if side == "positive" else scores.style <= PLAIN
        if not in_style:
            reasons.append(f"judge_{side}_style")
        if scores.coherence < COHERENT:
            reasons.append(f"judge_{side}_coherence")
    return reasons
