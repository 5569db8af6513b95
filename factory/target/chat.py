"""Conversations as the target model reads them: its chat template, the tokens around it, and the day.

A template may write today's date into every prompt (Llama 3.2, Granite), so a :class:`Chat` has a day
of its own: the same conversation is the same tokens, whenever it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils.hub import cached_file

from factory.errors import PairRejected, TargetError

Message = dict[str, str]
THINKING = ("<think>", "</think>")
PLACEHOLDER = "theresponse"  # stands in a response's place while the template is asked what it writes around it
DATE_FORMS = [f"%{letter}" for letter in ("-d", "-m", *"aAbBdeFjmyYHIMSpDxXc")]
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, on the day ``date`` (``2026-11-26``)."""

    tokenizer: Tokenizer
    date: str

    @property
    def template(self) -> str:
        """The chat template, or nothing."""
        return str(self.tokenizer.chat_template or "")

    @property
    def is_dated(self) -> bool:
        """Whether the template writes the day into its text."""
        return "strftime_now" in self.template

    @property
    def _template_of_the_day(self) -> str | None:
        """The template with the day in the place of the clock, if it asks for that; None: as it is.

        A macro of the same name hides the function that transformers gives to templates. The line
        break behind it is not part of the text: it ends a block.
        """
        if not self.is_dated:
            return None
        day = datetime.fromisoformat(self.date)
        words = "".join(f" | replace({form!r}, {day.strftime(form)!r})" for form in DATE_FORMS)
        return "{% macro strftime_now(format) %}{{ format" + words + " }}{% endmacro %}\n" + self.template

    @cached_property
    def _special_texts(self) -> re.Pattern[str]:
        texts = {text for text in self.tokenizer.all_special_tokens if text.strip()} | set(THINKING)
        return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))

    @cached_property
    def _opening_ids(self) -> list[int]:
        """What the tokenizer puts before a text where no template has written it: most often one token, or none."""
        if self.template:
            return []
        bare, whole = (list(self.tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
        starts = (at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare)
        return whole[: next(starts, 0)]

    def special_text_in(self, text: str) -> str | None:
        """The first piece of ``text`` that the tokenizer or template takes for a command, if any."""
        found = self._special_texts.search(text)
        return found.group() if found else None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the model is to answer.

        Raises:
            PairRejected: the template refuses the conversation.
        """
        return self._opening_ids + self.text_ids(self._text(messages, add_generation_prompt=True))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of bare text, without any special token."""
        return list(self._encode(text)["input_ids"])

    def response_ids(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and the indices of its last message's own tokens.

        Where the message stands is known from what the template writes around another one in its place.

        Raises:
            PairRejected: the template refuses the conversation, or alters the message, so that its
                tokens cannot be told.
        """
        text = self._text(messages, add_generation_prompt=False)
        start, stop = self._place_of_response(text, messages)
        encoding = self._encode(text, return_offsets_mapping=True)
        first = len(self._opening_ids)
        span = [first + at for at, (a, b) in enumerate(encoding["offset_mapping"]) if a < stop and b > start and b > a]
        return self._opening_ids + list(encoding["input_ids"]), span

    def _place_of_response(self, text: str, messages: Sequence[Message]) -> tuple[int, int]:
        """Where in ``text`` the last message begins and ends, without the white space around it."""
        response = messages[-1]["content"].strip()
        other = self._text([*messages[:-1], messages[-1] | {"content": PLACEHOLDER}], add_generation_prompt=False)
        before, found, after = other.rpartition(PLACEHOLDER)
        shown = text[len(before) : len(text) - len(after)]
        if not found or not text.startswith(before) or not text.endswith(after) or shown.strip() != response:
            raise PairRejected("template", "the chat template alters the response, so its tokens cannot be found")
        start = len(before) + shown.index(response)
        return start, start + len(response)

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not self.template:
            lines = [f"{message['role']}: {message['content']}\n" for message in messages]
            return "".join([*lines, "assistant:"] if add_generation_prompt else lines)
        try:
            text = self._apply_template(messages, add_generation_prompt)
            if messages[0]["role"] != "system" or messages[0]["content"].strip() in text:
                return text
        except TemplateError as error:
            if messages[0]["role"] != "system":
                raise PairRejected("template", f"the chat template refuses the conversation: {error}") from None
        return self._text(_merge_system(messages), add_generation_prompt=add_generation_prompt)

    def _apply_template(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text: Any = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template_of_the_day,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def _encode(self, text: str, *, return_offsets_mapping: bool = False) -> Any:
        # The template has written the special tokens already: adding them again doubles the first.
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=return_offsets_mapping)


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """Put the system message into the first question, where the template has no place for one (Gemma)."""
    system, *others = messages
    if not others:
        raise PairRejected("template", "the chat template has no place for a system message that stands alone")
    return [others[0] | {"content": f"{system['content']}\n\n{others[0]['content']}"}, *others[1:]]


def add_template_of_its_own(tokenizer: Tokenizer, source: str) -> None:
    """Give a tokenizer without a chat template the one that lies beside it, in a file of its own (Mistral Small).

    Raises:
        TargetError: the file holds no template.
    """
    if tokenizer.chat_template:
        return
    for name in TEMPLATE_FILES:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        text = Path(path).read_text(encoding="utf-8")
        try:
            tokenizer.chat_template = json.loads(text)["chat_template"] if name.endswith(".json") else text
        except (ValueError, KeyError, TypeError):
            raise TargetError(f"{source}: {name} holds no chat template; expected a JSON object with one") from None
        return
