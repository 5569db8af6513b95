"""What a loaded model's cache is like, found out by one short pass before anything else is done or paid.

One token at several positions, each in a row of its own: it sees nothing but itself, so where values
are the same in every row the hidden states are too, and keys must be the same once they are turned
back to position 0. That holds every layer's rotation to account, whatever the model's code calls it.
A short text then tells whether the model counts positions as it is told to: from 0, behind any padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from factory.errors import TargetError
from factory.target.kv import new_cache, read_states_of
from factory.target.rotation import Rotation, Watched, watch_keys

POSITIONS = (0, 3, 61, 200)
TOKEN = 10  # any that a vocabulary has
TEXT = (10, 11, 12, 13, 14)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of a key's length, by the numbers that a model computes in
READ_ALIKE = {torch.float32: 1e-3}  # of a value's length, in the middle layer: a kernel's rounding adds up
KEYS_TURNED, KEYS_AS_CACHED, KEYS_REFUSED = "rotated to position 0", "as cached", "none"


@dataclass(frozen=True)
class Anatomy:
    """The shape of one layer's states of one token, and how keys turn.

    ``refusal`` says why keys cannot be used; values can.
    """

    shape: tuple[int, int]
    rotation: Rotation
    refusal: str | None = None

    @property
    def keys(self) -> str:
        """What a vector's file says of its keys."""
        if self.refusal:
            return f"{KEYS_REFUSED}: {self.refusal}"
        return KEYS_AS_CACHED if self.rotation.is_none else KEYS_TURNED


def find_anatomy(model: PreTrainedModel, name: str) -> Anatomy:
    """Find out what the cache of ``model`` is like.

    Raises:
        TargetError: layers differ in their shape, or keys in theirs from values; the model cannot read
            into a cache, or counts positions in a way of its own.
    """
    try:
        return _find_anatomy(model, name)
    except (TargetError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).split())[:200]
        raise TargetError(
            f"{name}: it cannot read a token into a cache of keys and values ({type(error).__name__}: {reason}). "
            "Choose another model."
        ) from error


def _find_anatomy(model: PreTrainedModel, name: str) -> Anatomy:
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)
    positions = [position for position in POSITIONS if position < limit]
    watched = watch_keys(model, TOKEN, positions)
    shape = _shape(watched, model, name)
    _check_positions(model, name)
    rotation = watched.rotation()
    if rotation is None:
        return Anatomy(shape, Rotation(), "the model turns its keys in a way that is not understood")
    wrong = _wrong_layers(watched, rotation, positions, model.dtype)
    if wrong:
        return Anatomy(shape, Rotation(), f"keys of layers {_listed(wrong)} cannot be turned back to position 0")
    return Anatomy(shape, rotation)


def _shape(watched: Watched, model: PreTrainedModel, name: str) -> tuple[int, int]:
    """``(n_kv_heads, head_dim)``, the same for every layer's keys and values."""
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    if sorted(watched.keys) != list(range(n_layers)):
        raise TargetError(
            f"{name}: {len(watched.keys)} layers keep keys and values of their own, expected all {n_layers}. "
            "Choose a model with a cache in every layer."
        )
    shapes = {tuple(states.shape) for states in (*watched.keys.values(), *watched.values.values())}
    if len(shapes) > 1:
        found = ", ".join(f"{shape[1]} heads of {shape[3]}" for shape in sorted(shapes) if len(shape) == 4)
        raise TargetError(
            f"{name}: its cached keys and values are not all of one shape ({found}), as in latent attention or layers "
            "of different widths; a vector has one shape. Choose another model."
        )
    (shape,) = shapes
    if len(shape) != 4 or shape[2] != 1:
        raise TargetError(f"{name}: its cache holds {shape} for one token, expected [batch, heads, 1, head size]")
    return shape[1], shape[3]


def _check_positions(model: PreTrainedModel, name: str) -> None:
    """Refuse a model that does not count positions as it is told to: RoBERTa starts at 2, BART counts padding."""
    usual = read_states_of(model, torch.tensor([TEXT], device=model.device))
    for padding in (0, 3):
        ids = torch.tensor([[TOKEN] * padding + list(TEXT)], device=model.device)
        mask = torch.tensor([[0] * padding + [1] * len(TEXT)], device=model.device)
        positions = torch.tensor([[0] * padding + list(range(len(TEXT)))], device=model.device)
        told = read_states_of(model, ids, attention_mask=mask, position_ids=positions)
        apart = sorted(_apart(told[layer][1][:, :, padding:].float(), usual[layer][1].float()) for layer in usual)
        if apart[len(apart) // 2] > READ_ALIKE.get(model.dtype, 0.3):
            why = "a text behind padding" if padding else "a text whose positions count from 0"
            raise TargetError(f"{name}: it reads {why} otherwise than the text alone. Choose another model.")


@torch.inference_mode()
def answers_behind_padding(model: Any) -> bool:
    """Whether ``generate`` goes on from a cache behind padding as it does without: GIT and Whisper count padding."""
    second = []
    for padding in (0, 3):
        ids = torch.tensor([[TOKEN] * padding + list(TEXT)], device=model.device)
        mask = (torch.arange(ids.shape[1], device=model.device) >= padding).long()[None]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = new_cache(model)
        model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=TOKEN,
            output_logits=True,
            return_dict_in_generate=True,
        )
        second.append(output.logits[1].float())  # [1, vocabulary]
    return _apart(*second) <= READ_ALIKE.get(model.dtype, 0.3)


def _wrong_layers(watched: Watched, rotation: Rotation, positions: list[int], dtype: torch.dtype) -> list[int]:
    """Layers whose keys differ between positions once turned back, or do not turn forward to what was cached."""
    tolerance, at = TOLERANCE.get(dtype, 3e-2), torch.tensor(positions, device=watched.keys[0].device)
    wrong = []
    for layer, cached in watched.keys.items():
        keys, values = cached[:, :, 0].float(), watched.values[layer][:, :, 0].float()  # [n, n_kv_heads, head_dim]
        if _apart(values, values[:1]) > tolerance:  # learned positions: states tell where they stand
            wrong += [] if rotation.is_none else [layer]
            continue
        back = rotation.turn(keys[:, None], at, [layer], back=True)
        forward = rotation.turn(back[:1].expand_as(back), at, [layer], back=False)
        if max(_apart(back[:, 0], back[:1, 0]), _apart(forward[:, 0], keys)) > tolerance:
            wrong.append(layer)
    return wrong


def _apart(states: Tensor, expected: Tensor) -> float:
    """The largest distance between rows of both, by the length of what is expected."""
    distance = (states - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp(min=1e-12)
    return float(distance.max())


def _listed(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:6]))
    return shown if len(layers) <= 6 else f"{shown}, ... ({len(layers)} in all)"
