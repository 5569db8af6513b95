"""How a model turns its keys by their position, in either direction, taken from the model's own code.

Rotary embedding (RoFormer, arXiv 2104.09864) has many forms: halves or neighbours turn, all of a head
or a part, some layers or all, real or complex angles. So no form is written here: one short pass is
watched, and what was called for each layer's keys is called again, with the sine negated on the way back.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.target.kv import WatchedCache

ROTATING = re.compile(r"_?apply_(multimodal_)?rotary")


@dataclass(frozen=True)
class WatchedCall:
    """One call that was watched: what was called, with what, and the tensors that it gave."""

    called: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, object]
    output: tuple[Tensor, ...]

    def again(self, replace: Callable[[Any], Any]) -> tuple[Tensor, ...]:
        """The same call with each argument replaced."""
        options = {name: replace(value) for name, value in self.options.items()}
        return _tensors(self.called(*map(replace, self.arguments), **options))


@dataclass(frozen=True)
class LayerRotation:
    """What turns one layer's keys: ``turned`` is the model's own call, ``angles`` the one that gave it its angles.

    Of a key's numbers those from ``start`` turn, as many as the call was given; ``output`` says which of
    its results are the keys. ``heads_first``: it takes ``[batch, heads, tokens, numbers]``, else heads and
    tokens swapped.
    """

    turned: WatchedCall
    angles: WatchedCall
    output: int
    start: int
    width: int
    heads_first: bool

    def turn(self, keys: Tensor, positions: Tensor, *, back: bool) -> Tensor:
        """Turn ``keys`` [n, n_heads, head_dim] to ``positions`` [n], or back to 0."""
        part = keys[..., self.start : self.start + self.width]  # [n, n_heads, width]
        asked = part.transpose(0, 1)[None] if self.heads_first else part[None]
        angles = self.angles.again(lambda value: _at(value, positions, part))
        used = tuple(_reversed(angles)) if back else angles

        def replace(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            which = next((at for at, known in enumerate(self.angles.output) if known is value), None)
            if which is not None:
                return used[which]
            return _at(value, positions, asked)

        result = self.turned.again(replace)[self.output][0]
        result = result.transpose(0, 1) if self.heads_first else result
        if back:
            result = result / _scale(angles, self.width)
        turned = keys.clone()
        turned[..., self.start : self.start + self.width] = result
        return turned

    def is_like(self, other: LayerRotation) -> bool:
        """Whether both layers turn alike, so that they can turn together."""
        mine, theirs = self.angles.output, other.angles.output
        same = len(mine) == len(theirs) and all(one is another for one, another in zip(mine, theirs, strict=True))
        alike = (self.output, self.start, self.width) == (other.output, other.start, other.width)
        return same and alike and self.turned.called is other.turned.called


def _at(value: Any, positions: Tensor, like: Tensor) -> Any:
    """An argument of a watched call, for other tokens: position ids become ``positions``, states ``like``."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return like
    return positions[None] if value.ndim < 3 else positions.expand(value.shape[0], 1, -1)


def _reversed(angles: Sequence[Tensor]) -> Iterator[Tensor]:
    """The angles the other way round: cosine and negated sine, or conjugate complex numbers."""
    for at, angle in enumerate(angles):
        yield angle.conj() if angle.is_complex() else (-angle if at == 1 else angle)


def _scale(angles: Sequence[Tensor], width: int) -> Tensor:
    """By how much turning there and back makes a key longer (YaRN): [n, 1, width]."""
    squares = angles[0].abs().square() if angles[0].is_complex() else angles[0].square() + angles[1].square()
    scale = squares[0][:, None]  # [n, 1, width or half of it]
    return scale.repeat(1, 1, width // scale.shape[-1])


@dataclass(frozen=True)
class Rotation:
    """A model's rotary embedding: how each layer turns its keys, or None for a layer that leaves them alone."""

    layers: tuple[LayerRotation | None, ...] = ()

    @property
    def is_none(self) -> bool:
        """Whether no layer turns its keys (learned positions, ALiBi)."""
        return not any(self.layers)

    def turn(self, keys: Tensor, positions: Tensor, layers: Sequence[int], *, back: bool) -> Tensor:
        """Turn ``keys`` [n, n_layers, n_kv_heads, head_dim] to ``positions`` [n], or back to 0."""
        turned = keys.clone()
        for rotation, rows in self._groups(layers):
            part = turned[:, rows]  # [n, rows, n_kv_heads, head_dim]
            flat = rotation.turn(part.flatten(1, 2), positions, back=back)
            turned[:, rows] = flat.view(part.shape)
        return turned

    def _groups(self, layers: Sequence[int]) -> list[tuple[LayerRotation, list[int]]]:
        """Which rows of ``layers`` turn together, and how."""
        groups: list[tuple[LayerRotation, list[int]]] = []
        for row, layer in enumerate(layers):
            rotation = self.layers[layer] if layer < len(self.layers) else None
            if rotation is None:
                continue
            for known, rows in groups:
                if known.is_like(rotation):
                    rows.append(row)
                    break
            else:
                groups.append((rotation, [row]))
        return groups


@dataclass
class Watched:
    """What a pass was seen to do: each layer's keys and values, and the calls that turned them."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    turning: dict[int, list[WatchedCall]] = field(default_factory=dict)
    angles: list[WatchedCall] = field(default_factory=list)

    def rotation(self) -> Rotation | None:
        """The rotation that was seen; None where a layer turned something in a way that is not understood."""
        layers: list[LayerRotation | None] = []
        for layer in sorted(self.keys):
            calls = self.turning[layer]
            # A model may still norm what it turned (Llama 4): then the shape alone tells, and a probe must confirm.
            tries = [(call, exact) for exact in (True, False) for call in reversed(calls)]
            found = next(filter(None, (self._understand(call, self.keys[layer], exact) for call, exact in tries)), None)
            if calls and found is None:
                return None
            layers.append(found)
        return Rotation(tuple(layers))

    def _understand(self, call: WatchedCall, keys: Tensor, exact: bool) -> LayerRotation | None:
        """How ``call`` made ``keys`` [batch, n_heads, 1, head_dim], if it did and its angles are known."""
        given = [*call.arguments, *call.options.values()]
        angles = next(
            (one for one in self.angles if any(value is known for value in given for known in one.output)), None
        )
        if angles is None:
            return None
        for at, result in reversed(list(enumerate(call.output))):
            width = result.shape[-1]
            for heads_first in (True, False):
                shown = result if heads_first else result.transpose(1, 2)
                for start in {0, keys.shape[-1] - width}:
                    part = keys[..., start : start + width]
                    fits = start >= 0 and part.shape == shown.shape
                    if fits and (not exact or torch.equal(part, shown.to(part.dtype))):
                        kept = WatchedCall(call.called, call.arguments, call.options, ())
                        return LayerRotation(kept, angles, at, start, width, heads_first)
        return None


@torch.inference_mode()
def watch_keys(model: PreTrainedModel, token: int, positions: Sequence[int]) -> Watched:
    """Run one token at each of ``positions``, by itself, and see what becomes of its keys."""
    watched, calls = Watched(), list[WatchedCall]()

    def seen(layer: int, keys: Tensor, values: Tensor) -> None:
        watched.keys[layer], watched.values[layer] = keys, values
        watched.turning[layer] = list(calls)
        calls.clear()

    cache = WatchedCache(seen)
    ids = torch.full((len(positions), 1), token, device=model.device)
    with _watching(model, calls, watched.angles):
        model.base_model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor(positions, device=model.device)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
    return watched


@contextmanager
def _watching(model: PreTrainedModel, turning: list[WatchedCall], angles: list[WatchedCall]) -> Iterator[None]:
    """Note every call that turns states, and every one that gives angles."""
    with ExitStack() as stack:
        for name in {type(module).__module__ for module in model.modules()}:
            for attribute, function in list(vars(sys.modules[name]).items()):
                if ROTATING.match(attribute) and callable(function):
                    stack.callback(setattr, sys.modules[name], attribute, function)
                    setattr(sys.modules[name], attribute, _noting(function, turning))
        for module in model.modules():
            if "Rotary" in type(module).__name__:
                stack.enter_context(_noting_module(module, angles))
        yield


def _noting(function: Callable[..., Any], calls: list[WatchedCall]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        before = len(calls)
        result = function(*arguments, **options)
        del calls[before:]  # what it called itself is part of it
        calls.append(WatchedCall(function, arguments, options, _tensors(result)))
        return result

    return noted


@contextmanager
def _noting_module(module: nn.Module, calls: list[WatchedCall]) -> Iterator[None]:
    def note(called: nn.Module, arguments: Any, options: Mapping[str, object], result: Any) -> None:
        calls.append(WatchedCall(called, arguments, options, _tensors(result)))

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
