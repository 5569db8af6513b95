"""Steering: add a vector once to the KV cache of a prompt, then generate as usual.

Source: KV cache steering (arXiv 2507.08799). The prompt ends with one neutral token. All tokens
but that one are read; the vector is added to the states of the last read position (or the last
few); generation starts from the neutral token. Nothing happens during decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factory.errors import VectorError
from factory.target.anatomy import KEYS_REFUSED
from factory.target.chat import Message
from factory.target.kv import add_to_cache, new_cache
from factory.target.model import Target
from factory.vector.fit import check_fits
from factory.vector.setting import Setting
from factory.vector.vector import SteeringVector


@dataclass(frozen=True)
class Steering(Setting):
    """A vector and how strongly it is added, for a model that is loaded here."""

    @contextmanager
    def applied(self, target: Target) -> Iterator[None]:
        """Steer whatever generates with ``target.model`` inside the block: its ``generate``, or a loop of one's own.

        Each prefill (a forward pass that starts an empty cache) gets the vector once, as in
        :func:`generate_batch`: at the positions before the prompt's last token, which should be
        ``target.neutral_id``. Decoding is left alone. Padding goes to the left. One thread at a time::

            with Steering.recommended(vector).applied(target):
                output = target.model.generate(input_ids=ids, max_new_tokens=100)

        Raises:
            VectorError: the vector is for another model, or a forward pass in the block keeps no cache.
        """
        check_fits(self.vector, target)
        model: Any = target.model.base_model
        read = model.forward
        hidden = model.__dict__.get("forward")  # what a block around this one, or accelerate, has put there
        signature = inspect.signature(read)

        def forward(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            arguments = {**arguments, **arguments.pop("kwargs", {})}
            call = ForwardCall.of(arguments)
            return call.steered(read, target, self) if call.is_prefill else read(**arguments)

        model.forward = forward
        try:
            yield
        finally:
            if hidden is None:
                del model.forward
            else:
                model.forward = hidden


CACHED = ("input_ids", "attention_mask", "position_ids", "past_key_values")  # arguments of a forward pass


@dataclass(frozen=True)
class ForwardCall:
    """The arguments of one forward pass of a model; ``others`` are those that steering leaves as they are."""

    ids: Tensor | None  # [batch, longest]
    mask: Tensor | None
    positions: Tensor | None
    cache: Any
    others: Mapping[str, object]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> ForwardCall:
        """The call with these arguments, by transformers' names.

        Raises:
            VectorError: it keeps no cache.
        """
        if arguments.get("use_cache") is False:
            raise VectorError(
                "a vector is added to the KV cache, and this forward pass keeps none: pass use_cache=True"
            )
        ids, mask, positions, cache = map(arguments.get, CACHED)
        others = {k: value for k, value in arguments.items() if k not in (*CACHED, "cache_position", "use_cache")}
        return cls(ids, mask, positions, cache, others)

    @property
    def is_prefill(self) -> bool:
        """Whether it reads a prompt into an empty cache."""
        is_empty = self.cache is None or self.cache.get_seq_length() == 0
        return is_empty and self.ids is not None and self.ids.shape[1] > 1

    def steered(self, read: Callable[..., Any], target: Target, steering: Steering) -> Any:
        """Read all but the prompt's last token, add the vector to the cache, read the last token."""
        assert self.ids is not None
        ids, mask = self.ids, torch.ones_like(self.ids) if self.mask is None else self.mask
        if mask.dim() != 2:
            raise VectorError(f"attention_mask should be [batch, longest] to steer, found {list(mask.shape)}")
        positions = positions_of(mask) if self.positions is None else self.positions
        cache = new_cache(target.model) if self.cache is None else self.cache
        shared = {**self.others, "past_key_values": cache, "use_cache": True}
        before = read(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], **shared)
        add_vector(target, cache, positions[:, :-1].expand(len(ids), -1), steering)
        output = read(input_ids=ids[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], **shared)
        output.last_hidden_state = torch.cat([before.last_hidden_state, output.last_hidden_state], dim=1)
        return output


def as_messages(prompt: str | Sequence[Message], system: str | None = None) -> list[Message]:
    """A prompt as a conversation: a question, or the messages themselves, after an optional system one."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [{"role": "system", "content": system}, *messages] if system else messages


def generate(
    target: Target,
    prompt: str | Sequence[Message],
    *,
    vector: SteeringVector | Steering | None = None,
    strength: float | None = None,
    max_new_tokens: int = 256,
    system: str | None = None,
    **sampling: Any,
) -> str:
    """The model's answer to ``prompt``, steered by ``vector`` if there is one.

    Without ``strength`` the vector's own recommendation is used, or 1.0. ``sampling`` goes to
    ``model.generate`` (``do_sample``, ``temperature``, ``top_p``, ``streamer``, ...); the default
    is greedy.

    >>> from factory import load_target
    >>> target = load_target("smollm2-135m-instruct", device="cpu")
    >>> generate(target, "What is the capital of France?", max_new_tokens=7)
    'The capital of France is Paris.'

    Raises:
        VectorError: the vector is for another model.
    """
    steering = Steering.recommended(vector, strength) if isinstance(vector, SteeringVector) else vector
    messages = as_messages(prompt, system)
    return generate_batch(target, [messages], steering=steering, max_new_tokens=max_new_tokens, **sampling)[0]


@torch.inference_mode()
def generate_batch(
    target: Target,
    conversations: Sequence[Sequence[Message]],
    *,
    steering: Steering | None = None,
    max_new_tokens: int = 256,
    **sampling: Any,
) -> list[str]:
    """Answers to several conversations, all steered alike: at once, padded on the left, where the model can."""
    prompts = [[*target.prompt_ids(messages), target.neutral_id] for messages in conversations]
    if len(set(map(len, prompts))) > 1 and not target.can_pad:
        alone = {"steering": steering, "max_new_tokens": max_new_tokens} | sampling
        return [generate_batch(target, [messages], **alone)[0] for messages in conversations]
    ids, mask = left_padded(target, prompts)
    cache = steered_cache(target, ids, mask, steering)
    options = {"do_sample": False, "pad_token_id": _pad_id(target)} | sampling
    model: Any = target.model
    with target.lock:
        output = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=max_new_tokens, **options
        )
    answers = target.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def steered_cache(target: Target, ids: Tensor, mask: Tensor, steering: Steering | None) -> Any:
    """The cache of ``ids`` [batch, longest] without their last token, with the vector added."""
    if steering is not None:
        check_fits(steering.vector, target)
    cache = new_cache(target.model)
    positions = positions_of(mask)
    with target.lock:
        target.model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
    if steering is not None:
        add_vector(target, cache, positions[:, :-1], steering)
    return cache


def add_vector(target: Target, cache: Any, positions: Tensor, steering: Setting) -> None:
    """Add the vector to ``cache``, in place; ``positions`` [batch, cached] are its rotary positions."""
    vector, n_positions = steering.vector, steering.n_positions
    if steering.key_strength:
        _check_keys(vector, target)
    values = steering.strength * vector.value_vector.to(target.device) if steering.strength else None
    keys = None
    if steering.key_strength:
        at = positions[:, -n_positions:]  # [batch, n_positions]
        scaled = steering.key_strength * vector.key_vector.to(target.device)
        spread = scaled.expand(at.numel(), *scaled.shape)  # [batch * n_positions, n_layers, n_kv_heads, head_dim]
        turned = target.rotation.turn(spread, at.flatten(), vector.layer_indices, back=False)
        keys = turned.reshape(*at.shape, *scaled.shape)
    add_to_cache(cache, vector.layer_indices, keys, values, n_positions)


def _check_keys(vector: SteeringVector, target: Target) -> None:
    """Refuse keys that could not be turned back to position 0, when they were read or now.

    Raises:
        VectorError: says why.
    """
    said = str(vector.extraction_config.get("keys", ""))
    refusal = said if said.startswith(KEYS_REFUSED) else target.anatomy.refusal
    if refusal:
        raise VectorError(
            f"vector {vector.style_name!r} has no keys that could be added to {target.name}: "
            f"{refusal.removeprefix(KEYS_REFUSED + ': ')}. Use key_strength 0: its values steer"
        )


def left_padded(target: Target, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [batch, longest]; padding goes to the left."""
    longest = max(map(len, prompts))
    pad = _pad_id(target)
    ids = target.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = target.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """Rotary positions [batch, longest] of a left-padded batch: the first real token is at 0."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _pad_id(target: Target) -> int:
    tokenizer = target.tokenizer
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
