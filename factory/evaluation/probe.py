"""The probe: what a vector does to the first words, before anything is generated.

One forward pass per question over the edited cache tells how likely the style's openings have
become, and how far the next token's distribution moved. It takes seconds for dozens of cells, and says
which few deserve real answers. It cannot see loops: those need answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from factory.evaluation.cell import Cell
from factory.evaluation.figures import Reading
from factory.pairs.styles import Style
from factory.target.layers import parse_layers
from factory.target.model import Target
from factory.vector.steer import Steering, add_vector, as_messages, left_padded, positions_of, steered_cache
from factory.vector.vector import SteeringVector

MANY_LAYERS = 10_000  # more than any model has: a cell may name layers that this one lacks


class Probe:
    """Held-out questions, read once, to which the cells of one vector are applied in turn."""

    def __init__(self, target: Target, style: Style, questions: Sequence[str]) -> None:
        prompts = [[*target.prompt_ids(as_messages(question)), target.neutral_id] for question in questions]
        self.target = target
        self.ids, self.mask = left_padded(target, prompts)
        self.cache = steered_cache(target, self.ids, self.mask, None)
        self.openings = [target.text_ids(opening) for opening in style.openings]
        self.before = self._next_token(self.cache)

    @torch.inference_mode()
    def read(self, vector: SteeringVector, cell: Cell) -> Reading:
        """What ``cell`` does."""
        cache, steering = copy.deepcopy(self.cache), apply_cell(vector, cell)
        add_vector(self.target, cache, positions_of(self.mask)[:, :-1], steering)
        after = self._next_token(cache)  # [n_questions, vocabulary], log-probabilities
        moved = (after.exp() * (after - self.before)).sum(dim=1).mean()
        likely = [self._likelihood(cache, opening) for opening in self.openings]
        openings = torch.stack(likely).amax(dim=0).mean() if likely else torch.tensor(0.0)
        return Reading(
            setting=cell,
            openings=round(float(openings), 4),
            moved=round(float(moved), 4),
            doses=tuple(round(dose, 4) for dose in self._doses(steering)),
        )

    def _doses(self, steering: Steering) -> Iterator[float]:
        """The norm of the edit over that of the values at the steered positions, layer by layer."""
        for layer, added in zip(steering.vector.layer_indices, steering.vector.value_vector, strict=True):
            values = self.cache.layers[layer].values[:, :, -steering.n_positions :].float()
            norms = values.transpose(1, 2).flatten(2).norm(dim=2)  # [n_questions, n_positions]
            yield abs(steering.strength) * float(added.norm()) / float(norms.mean())

    @torch.inference_mode()
    def unsteered(self) -> float:
        """Log-probability of the openings without any vector."""
        likely = [self._likelihood(self.cache, opening) for opening in self.openings]
        return round(float(torch.stack(likely).amax(dim=0).mean()), 4) if likely else 0.0

    @torch.inference_mode()
    def _next_token(self, cache: Any) -> Tensor:
        return self._logits(copy.deepcopy(cache), self.ids[:, -1:])[:, -1].log_softmax(dim=-1)

    def _likelihood(self, cache: Any, opening: list[int]) -> Tensor:
        """Log-probability of ``opening`` after each question: [n_questions]."""
        tokens = self.target.tensor([opening] * len(self.ids))
        said = torch.cat([self.ids[:, -1:], tokens[:, :-1]], dim=1)
        likely = self._logits(copy.deepcopy(cache), said).log_softmax(dim=-1)
        return likely.gather(2, tokens[:, :, None]).sum(dim=(1, 2))

    def _logits(self, cache: Any, ids: Tensor) -> Tensor:
        """Logits after each of ``ids`` [n_questions, n_tokens] that follow the cached prompt."""
        n_tokens = ids.shape[1]
        mask = torch.cat([self.mask[:, :-1], torch.ones_like(ids)], dim=1)
        model: Any = self.target.model
        with self.target.lock:
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions_of(mask)[:, -n_tokens:],
                past_key_values=cache,
                use_cache=True,
            )
        return torch.as_tensor(output.logits).float()


def layers_of(vector: SteeringVector, cell: Cell) -> list[int]:
    """Those of the vector's layers that ``cell`` names; maybe none."""
    if cell.layers.strip() == "all":
        return list(vector.layer_indices)
    named = parse_layers(cell.layers, MANY_LAYERS)
    return [layer for layer in vector.layer_indices if layer in named]


def apply_cell(vector: SteeringVector, cell: Cell) -> Steering:
    """The vector as ``cell`` wants it."""
    return Steering(
        vector.at_layers(layers_of(vector, cell)),
        strength=cell.strength,
        key_strength=cell.key_strength,
        n_positions=cell.n_positions,
    )
