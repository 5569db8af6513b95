"""Phases of an answer: the thought, if the prompt has opened one, and the answer; each with tokens of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from factory.evaluation.thought import CLOSE, OPEN
from factory.target.model import Target


def opens_thought(target: Target) -> bool:
    """Whether the target's generation prompt ends inside a thought."""
    prompt = target.tokenizer.decode(target.prompt_ids([{"role": "user", "content": "Why?"}]))
    return str(prompt).rstrip().endswith(OPEN)


class PhaseBudgets(StoppingCriteria):
    """Ends an answer ``answer_tokens`` after its thought has ended, whenever that was.

    Generation as a whole is bounded by thought and answer together (``max_new_tokens``); without this
    a short thought would leave the answer more room than a long one does, and answers of different
    length would be compared.
    """

    def __init__(self, target: Target, *, thought_tokens: int, answer_tokens: int) -> None:
        self.close = target.tokenizer.encode(CLOSE, add_special_tokens=False)
        self.thought_tokens, self.answer_tokens = thought_tokens, answer_tokens
        self.prompt: int | None = None  # tokens before the first that is generated

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Which rows of ``input_ids`` [batch, n_tokens] end here: [batch]."""
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1
        said = input_ids[:, self.prompt :]  # [batch, n_said]
        ended = self._ends(said)
        answering = said.shape[1] - ended  # tokens since the thought ended; negative while it goes on
        return (answering >= self.answer_tokens) | ((ended > said.shape[1]) & (said.shape[1] >= self.thought_tokens))

    def _ends(self, said: Tensor) -> Tensor:
        """How many tokens each row's thought took, its closing mark included; more than it has while open."""
        n_said, n_close = said.shape[1], len(self.close)
        if n_said < n_close:
            return torch.full((len(said),), n_said + 1, device=said.device)
        windows = said.unfold(1, n_close, 1)  # [batch, n_said - n_close + 1, n_close]
        found = (windows == torch.tensor(self.close, device=said.device)).all(dim=2)
        first = found.int().argmax(dim=1) + n_close
        return torch.where(found.any(dim=1), first, n_said + 1)
