"""Reading a chat completion, in all the shapes in which servers send one.

A thought is no answer, an answer may come in pieces, an end that is not known to be good is none,
and a server that counts nothing has counted nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from factory.files import whole_text

# Words of servers for an answer that came to its end; in small letters. None and "" are said by some, too.
GOOD_ENDS = {
    *("stop", "none", "null", "", "eos", "eos_token", "end", "end_turn", "end_of_turn", "complete", "completed"),
    *("finished", "finish", "done", "stop_sequence", "stop_token", "finish_reason_stop", "normal", "success"),
}
CUT = re.compile(r"length|max|limit|budget")
FILTERED = re.compile(r"filter|refus|safety|moderat|blocklist|prohibited|recitation|spii|sensitive|policy|guard")

TAGS = r"think|thinking|thought|reasoning"
# The closing tag of "think" alone, too: some templates write the opening one into the prompt.
THOUGHT = re.compile(
    rf"\s*(?:<({TAGS})>.*?</\1>|\[THINK\].*?\[/THINK\]|(?:(?!<({TAGS})>).)*?</think>)\s*", re.DOTALL | re.IGNORECASE
)
OPEN_THOUGHT = re.compile(rf"\s*(?:<(?:{TAGS})>|\[THINK\])", re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """What of a completion is kept; ``bad`` says why it cannot be used, or None.

    ``usage``: tokens read (``input``) and written (``output``), or nothing where the server did not count.
    ``unseen``: bytes that it wrote beside the text, thoughts for the most part.
    """

    bad: str | None
    text: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    unseen: int = 0


def read_completion(content: object) -> Completion | None:
    """The completion in a body of JSON, or None where it holds none: a failure on the way, not an answer."""
    if not isinstance(content, dict) or not isinstance(content.get("choices"), list):
        return None
    choices = content["choices"]
    choice = _object(choices[0]) if choices else {}
    message = _object(choice.get("message"))
    said = whole_text(join_parts(message.get("content")))
    text = take_off_thought(said)
    usage = count_tokens(content.get("usage"), text)
    if not choice and not usage:
        return None
    end = choice.get("finish_reason")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    hidden = whole_text(reasoning) if isinstance(reasoning, str) else ""
    return Completion(
        bad=_fault_of(text, str(end), bool(message.get("refusal"))),
        text=text,
        model=whole_text(str(content.get("model") or "")),
        finish_reason=whole_text(str(end)),
        usage=usage,
        unseen=len(said.encode()) - len(text.encode()) + len(hidden.encode()),
    )


def _object(content: object) -> Mapping[str, object]:
    return content if isinstance(content, dict) else {}


def _fault_of(text: str, end: str, refused: bool) -> str | None:
    end = end.lower()
    if end not in GOOD_ENDS:
        return "length" if CUT.search(end) else "content_filter" if FILTERED.search(end) else "unfinished"
    if refused:
        return "refusal"
    return None if text else "empty"


def join_parts(content: object) -> str:
    """The text of a message: as it is, or the text parts of a list, in order."""
    if isinstance(content, str):
        return content
    return "".join(_text_of(part) for part in content) if isinstance(content, list) else ""


def _text_of(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def take_off_thought(text: str) -> str:
    """An answer without the thought before it; a thought that never ends has no answer behind it."""
    found = THOUGHT.match(text)
    if found:
        return text[found.end() :].strip()
    return "" if OPEN_THOUGHT.match(text) else text.strip()


def count_tokens(usage: object, text: str) -> dict[str, int]:
    """Tokens of a call, or nothing where the server does not say both. No prompt has none, and no answer."""
    if not isinstance(usage, dict):
        return {}
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(read) is not int or type(written) is not int or read <= 0 or written < (1 if text else 0):
        return {}
    return {"input": read, "output": written}
