"""Responses read behind a steered prompt, so that their likelihood has a gradient in the vector and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from factory.learning.checkpointing import bound_of, held_bytes, layers_run_again
from factory.learning.prompts import Prompts
from factory.learning.sentences import split_sentences
from factory.target.kv import new_cache
from factory.target.model import Target
from factory.vector.steer import positions_of


class ResponseReader:
    """Reads responses of at most ``n_tokens`` tokens behind prompts whose cache has the vector added.

    A pass that would keep more than ``memory`` bytes for its gradient is checkpointed; None: what the
    device can spare.
    """

    def __init__(self, prompts: Prompts, layers: Sequence[int], n_tokens: int, memory: int | None = None) -> None:
        self.prompts = prompts
        self.target: Target = prompts.target
        self.layers = list(layers)
        self.n_tokens = n_tokens
        self.memory = memory

    def log_probabilities(
        self, questions: Sequence[str], said: Sequence[Sequence[int]], vector: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the model says of each token of the responses ``said`` before it is read.

        ``vector`` is ``[2, n_layers, n_kv_heads, head_dim]``, keys first, or None. Returns
        log-probabilities over the vocabulary ``[batch, longest, vocabulary]``, the tokens
        ``[batch, longest]`` and which of them are real ``[batch, longest]``.
        """
        longest = max(map(len, said))
        tokens = self.target.tensor([[*ids, *[0] * (longest - len(ids))] for ids in said])
        real = self.target.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in said])
        neutral = torch.full_like(tokens[:, :1], self.target.neutral_id)
        cache, before = self._steered_cache([self.prompts.read(question) for question in questions], vector)
        mask = torch.cat([before, torch.ones_like(neutral), real[:, :-1]], dim=1)
        model: Any = self.target.model
        with self.target.lock, self._within_memory(tokens):
            output = model(
                input_ids=torch.cat([neutral, tokens[:, :-1]], dim=1),
                attention_mask=mask,
                position_ids=positions_of(mask)[:, before.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits.float().log_softmax(dim=-1), tokens, real

    def likelihoods(self, questions: Sequence[str], responses: Sequence[str], vector: Tensor | None) -> Tensor:
        """Mean log-probability (nats per token) of each response: ``[batch]``."""
        said = [self.response_ids(response) for response in responses]
        found, tokens, real = self.log_probabilities(questions, said, vector)
        each = found.gather(2, tokens[:, :, None])[:, :, 0] * real
        return each.sum(dim=1) / real.sum(dim=1)

    def _within_memory(self, tokens: Tensor) -> AbstractContextManager[None]:
        """Checkpointing, where the backward pass would keep more than there is room for."""
        bound = bound_of(self.target.device) if self.memory is None else self.memory
        fits = not torch.is_grad_enabled() or held_bytes(self.target, *tokens.shape) <= bound
        return nullcontext() if fits else layers_run_again(self.target)

    def response_ids(self, response: str) -> list[int]:
        """The response's first whole sentences, and the token that ends a turn.

        A response that is too long is read as ended where its last whole sentence is: of responses
        that break off a vector never learns to stop, and an answer that should have ended loops. Where
        the first sentence alone is too long, it breaks off.
        """
        end = self.target.tokenizer.eos_token_id
        sentences = split_sentences(response)
        for count in range(len(sentences), 0, -1):
            ids = self.target.text_ids("".join(sentences[:count]))
            if len(ids) <= self.n_tokens:
                return ids if end is None else [*ids, int(end)]
        return ids[: self.n_tokens]

    def _steered_cache(self, prompts: Sequence[Tensor], vector: Tensor | None) -> tuple[Any, Tensor]:
        """A cache of several prompts, padded to the left, with the vector added; and its mask [batch, longest]."""
        lengths = [prompt.shape[3] for prompt in prompts]
        longest = max(lengths)
        states = torch.stack([pad(prompt, (0, 0, longest - prompt.shape[3], 0)) for prompt in prompts])
        # [batch, n_layers, 2, n_kv_heads, longest, head_dim]
        mask = self.target.tensor([[0] * (longest - length) + [1] * length for length in lengths])
        added = None if vector is None else self._at_positions(vector, self.target.tensor(lengths) - 1)
        cache = new_cache(self.target.model)
        for layer in range(self.target.n_layers):
            keys, values = states[:, layer, 0], states[:, layer, 1]
            if added is not None and layer in self.layers:
                row = self.layers.index(layer)
                keys, values = _plus(keys, added[0][:, row]), _plus(values, added[1][:, row])
            cache.update(keys, values, layer)
        return cache, mask

    def _at_positions(self, vector: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, turned to each prompt's last position, and values: both [batch, n_layers, n_kv_heads, head_dim]."""
        keys, values = (part.expand(len(positions), *part.shape) for part in vector)
        return self.target.rotation.turn(keys, positions, self.layers, back=False), values


def _plus(states: Tensor, added: Tensor) -> Tensor:
    """``states`` [batch, n_kv_heads, n_tokens, head_dim] with ``added`` [batch, n_kv_heads, head_dim] at the last."""
    return torch.cat([states[:, :, :-1], states[:, :, -1:] + added[:, :, None].to(states)], dim=2)
