"""One answer in the making: how its tokens are chosen, and what text of it can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from factory.target.model import Target


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; ``temperature`` 0 takes the likeliest."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


def processors_of(target: Target, sampling: Sampling) -> LogitsProcessorList:
    """What changes the logits: what the model's own generation config asks for, then the request."""
    config: Any = target.model.generation_config
    found = LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if sampling.temperature > 0:
        found.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
    return found


def end_ids(target: Target) -> frozenset[int]:
    """The tokens that end an answer, as ``model.generate`` knows them."""
    config: Any = target.model.generation_config
    found = config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


class Choice:
    """Chooses one answer's tokens; with a seed always the same ones."""

    def __init__(self, target: Target, prompt: Sequence[int], sampling: Sampling, index: int) -> None:
        self.processors = processors_of(target, sampling)
        self.ids = list(prompt)
        self.sampling = sampling
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((sampling.seed + index) % 2**63)

    def next_token(self, logits: Tensor) -> int:
        """The token that follows, from ``logits`` [vocabulary]."""
        scores = logits[None].clone()
        if self.processors:
            scores = self.processors(torch.tensor([self.ids], device=logits.device), scores)  # type: ignore[arg-type]
        if self.sampling.temperature > 0:
            shares = scores.softmax(dim=-1)[0].cpu()
            token = int(torch.multinomial(shares, 1, generator=self.generator))
        else:
            token = int(scores[0].argmax())
        self.ids.append(token)
        return token


class Text:
    """An answer's text as far as it is settled: without leading space, and never beyond a stop string.

    The end of the text is held back while it may be the beginning of a stop string, or space that
    the whole answer would not end with. In all, the pieces are what ``generate`` returns.
    """

    def __init__(self, target: Target, stop: Sequence[str]) -> None:
        self.tokenizer: Any = target.tokenizer
        self.stop = stop
        self.stream = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.whole = ""
        self.shown = 0  # characters of ``whole``
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Take one more token; returns the text that can be shown now."""
        self.ids.append(token)
        self.whole = (self.whole + (self.stream.step(self.tokenizer.backend_tokenizer, token) or "")).lstrip()
        self._cut_at_stop()
        if self.is_stopped:
            return self._show(len(self.whole.rstrip()))
        held = max((_overlap(self.whole, stop) for stop in self.stop), default=0)
        return self._show(len(self.whole[: len(self.whole) - held].rstrip()))

    def finish(self) -> str:
        """The rest of the text."""
        if not self.is_stopped:
            text = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()
            if text.startswith(self.whole[: self.shown]):
                self.whole = text
            self._cut_at_stop()
        return self._show(len(self.whole.rstrip()))

    def _cut_at_stop(self) -> None:
        found = [at for at in (self.whole.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.whole, self.is_stopped = self.whole[: min(found)], True

    def _show(self, until: int) -> str:
        piece = self.whole[self.shown : until]
        self.shown = max(self.shown, until)
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` may begin ``stop``."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Row:
    """A row of the batch: the job that it answers, and the token that is read next."""

    job: Any
    index: int
    choice: Choice
    text: Text
    pending: int
    n_tokens: int = field(default=0)
