"""The prompts of pairs as the frozen model read them: read once, kept within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from factory.target.kv import new_cache
from factory.target.model import Target

MEMORY = 512 * 2**20  # bytes of prompts that a worker keeps


class Prompts:
    """Keys and values of prompts, ``[n_layers, 2, n_kv_heads, n_tokens, head_dim]``, keys first.

    Each prompt is read by itself, so that its states do not depend on what else is asked for.
    """

    def __init__(self, target: Target, memory: int = MEMORY) -> None:
        self.target = target
        self.memory = memory
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def read(self, question: str) -> Tensor:
        """The states of the prompt that asks ``question``, without the neutral token behind it."""
        states = self._kept.pop(question, None)
        if states is None:
            states = self._forward(question)
            self._bytes += states.nbytes
        self._kept[question] = states  # the youngest
        while self._bytes > self.memory and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return states

    @torch.no_grad()  # not inference mode: what is read here takes part in passes that have a gradient
    def _forward(self, question: str) -> Tensor:
        ids = self.target.tensor([self.target.prompt_ids([{"role": "user", "content": question}])])
        cache = new_cache(self.target.model)
        self.target.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: list[Any] = [cache.layers[number] for number in range(self.target.n_layers)]
        return torch.stack([torch.cat([layer.keys, layer.values]) for layer in layers])
