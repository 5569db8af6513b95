"""A steering vector as a value: it adds, subtracts, negates, scales, saves and loads.

Also the running sum from which it is made. This module knows no model and no queue.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from factory.errors import VectorError
from factory.files import write_atomically
from factory.vector.sources import find_vector

FORMAT_VERSION = 1
LONGEST_NAME = 1000  # characters of a style's or a model's name in a file; sums of vectors have long ones
FIELDS = (
    "style_name",
    "key_vector",
    "value_vector",
    "layer_indices",
    "model_name",
    "metadata",
    "extraction_config",
    "format_version",
)
HEADER = "steering_vector"  # the entry of a safetensors file's metadata that holds all but the tensors
TYPES = {"style_name": str, "model_name": str, "layer_indices": list, "metadata": dict, "extraction_config": dict}


@dataclass(frozen=True)
class SteeringVector:
    """What to add to a model's KV cache to make it reason in a style.

    ``key_vector`` and ``value_vector`` are float32 ``[n_layers, n_kv_heads, head_dim]``, one row per
    layer of ``layer_indices``; keys stand at rotary position 0. Vectors of the same model and
    layers add and subtract; a number scales them.

    >>> row = torch.ones(1, 2, 4)  # one layer, two KV heads of 4 numbers
    >>> calm = SteeringVector("calm", key_vector=row, value_vector=2 * row, layer_indices=[7], model_name="m")
    >>> half = calm / 2
    >>> half.style_name, half.value_vector.mean().item()
    ('0.5 * calm', 1.0)
    >>> round((calm - half).cosine(calm), 6)
    1.0
    """

    style_name: str
    key_vector: Tensor
    value_vector: Tensor
    layer_indices: list[int]
    model_name: str
    metadata: dict[str, Any] = field(default_factory=dict)
    extraction_config: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        shape = tuple(self.key_vector.shape)
        if len(shape) != 3 or shape != tuple(self.value_vector.shape) or shape[0] != len(self.layer_indices):
            raise VectorError(
                f"vector {self.style_name!r}: keys {shape} and values {tuple(self.value_vector.shape)} should both "
                f"be [n_layers, n_kv_heads, head_dim] with n_layers {len(self.layer_indices)}"
            )

    # ---- algebra

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return self._combine(other, torch.add, "+")

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self._combine(other, torch.sub, "-")

    def __mul__(self, factor: float) -> SteeringVector:
        return self._derive(
            f"{factor:g} * {_bracketed(self.style_name)}", self.key_vector * factor, self.value_vector * factor
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        return self * (1 / divisor)

    def __neg__(self) -> SteeringVector:
        return self._derive(f"-{_bracketed(self.style_name)}", -self.key_vector, -self.value_vector)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return (
            self._origin() == other._origin()
            and self.style_name == other.style_name
            and torch.equal(self.key_vector, other.key_vector)
            and torch.equal(self.value_vector, other.value_vector)
        )

    __hash__ = None  # type: ignore[assignment]

    def _origin(self) -> tuple[str, tuple[int, ...]]:
        return self.model_name, tuple(self.layer_indices)

    def _combine(
        self, other: SteeringVector, operation: Callable[[Tensor, Tensor], Tensor], sign: str
    ) -> SteeringVector:
        if self._origin() != other._origin() or self.key_vector.shape != other.key_vector.shape:
            raise VectorError(
                f"{self.style_name!r} is for {self.model_name}, layers {self.layer_indices}; {other.style_name!r} "
                f"is for {other.model_name}, layers {other.layer_indices}. Only vectors of the same model and "
                "layers combine; vector.at_layers(...) picks layers."
            )
        return self._derive(
            f"{self.style_name} {sign} {_bracketed(other.style_name)}",
            operation(self.key_vector, other.key_vector),
            operation(self.value_vector, other.value_vector),
        )

    def _derive(self, name: str, keys: Tensor, values: Tensor) -> SteeringVector:
        """A vector made by arithmetic: what was measured on its parents does not hold for it."""
        lasting = ("model_revision", "factory_version")
        kept = {key: value for key, value in self.metadata.items() if key in lasting}
        return replace(self, style_name=name, key_vector=keys, value_vector=values, metadata=kept)

    def at_layers(self, layers: Sequence[int]) -> SteeringVector:
        """The same vector at fewer layers.

        Raises:
            VectorError: the vector does not hold one of ``layers``.
        """
        missing = sorted(set(layers) - set(self.layer_indices))
        if missing:
            raise VectorError(f"{self.style_name!r} holds layers {self.layer_indices}, not {missing}")
        rows = [self.layer_indices.index(layer) for layer in layers]
        return replace(
            self,
            key_vector=self.key_vector[rows],
            value_vector=self.value_vector[rows],
            layer_indices=list(layers),
        )

    def cosine(self, other: SteeringVector) -> float:
        """Cosine between the values of two vectors, all layers and heads as one direction."""
        ours, theirs = self.value_vector.flatten().double(), other.value_vector.flatten().double()
        if ours.shape != theirs.shape:
            raise VectorError(f"{self.style_name!r} and {other.style_name!r} have different shapes")
        return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))

    def norms(self) -> dict[str, list[float]]:
        """Euclidean norm of keys and of values at each layer."""
        return {
            "keys": self.key_vector.flatten(1).norm(dim=1).tolist(),
            "values": self.value_vector.flatten(1).norm(dim=1).tolist(),
        }

    # ---- files (docs/format.md)

    def to_pt(self) -> bytes:
        """The content of the ``.pt`` file; the same vector always gives the same bytes."""
        rest = {name: getattr(self, name) for name in FIELDS if not name.endswith("_vector")}
        # Through JSON, because a pickle's bytes also say which equal texts were one object in memory.
        rest = json.loads(json.dumps(rest))
        content = {name: rest.get(name) for name in FIELDS}
        content["key_vector"] = self.key_vector.contiguous().clone()
        content["value_vector"] = self.value_vector.contiguous().clone()
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def to_safetensors(self) -> bytes:
        """The same content as a safetensors file: two tensors, the rest as JSON in its header."""
        rest = {name: getattr(self, name) for name in FIELDS if not name.endswith("_vector")}
        header = {HEADER: json.dumps(rest, sort_keys=True)}  # one entry: safetensors writes several in any order
        tensors = {
            "key_vector": self.key_vector.contiguous(),
            "value_vector": self.value_vector.contiguous(),
        }
        return save_safetensors(tensors, metadata=header)

    def save(self, path: str | Path) -> None:
        """Write a ``.pt`` or ``.safetensors`` file, atomically; the file's ending decides."""
        as_safetensors = str(path).endswith(".safetensors")
        write_atomically(path, self.to_safetensors() if as_safetensors else self.to_pt())

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read a vector written by :meth:`save`; nothing in the file is executed.

        ``path`` is a file, a folder that holds one vector, or a hub's ``owner/name`` or ``owner/name@revision``.

        Raises:
            VectorError: nothing there, more than one vector, or a file that is not a steering vector.
            HubError: the repository cannot be fetched.
        """
        file = find_vector(path)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise VectorError(f"vector {str(path)!r} cannot be read: {error.strerror}") from None
        return cls.from_bytes(raw, source=str(file))

    @classmethod
    def from_bytes(cls, raw: bytes, source: str) -> SteeringVector:
        """Read a vector from the bytes of either file; ``source`` names it in errors.

        Raises:
            VectorError: the bytes are not a steering vector.
        """
        try:
            content = _read_safetensors(raw) if source.endswith(".safetensors") else _read_pt(raw)
        except Exception:  # a foreign file makes both readers raise nearly anything
            raise VectorError(f"{source!r} is not a steering vector: not a file that svf writes") from None
        missing = [name for name in FIELDS if name not in content] if isinstance(content, dict) else list(FIELDS)
        if missing:
            raise VectorError(f"{source!r} is not a steering vector: it lacks {', '.join(missing)}")
        _check_types(content, source)
        try:
            return cls(**{name: content[name] for name in FIELDS})
        except VectorError as error:
            raise VectorError(f"{source!r}: {error}") from None


def _bracketed(name: str) -> str:
    return f"({name})" if " " in name else name


def _read_pt(raw: bytes) -> Any:
    return torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")


def _read_safetensors(raw: bytes) -> Any:
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])["__metadata__"]
    return {**load_safetensors(raw), **json.loads(header[HEADER])}


def _check_types(content: Mapping[str, object], source: str) -> None:
    version = content["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise VectorError(
            f"{source!r} has format_version {version!r}; this factory reads up to {FORMAT_VERSION}. Update the factory."
        )
    for name, kind in TYPES.items():
        if not isinstance(content[name], kind):
            found = type(content[name]).__name__
            raise VectorError(f"{source!r} is not a steering vector: {name} should be {kind.__name__}, found {found}")
    for name in ("style_name", "model_name"):
        text = str(content[name])
        if not 0 < len(text) <= LONGEST_NAME or not text.isprintable():
            raise VectorError(
                f"{source!r} is not a steering vector: {name} should be one line of 1 to {LONGEST_NAME} characters, "
                f"found {text[:60]!r}"
            )
    for name in ("key_vector", "value_vector"):
        tensor = content[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
            raise VectorError(f"{source!r} is not a steering vector: {name} should be a float32 tensor")
