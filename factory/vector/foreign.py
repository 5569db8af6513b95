"""Vectors that other programs made: those of a KV cache are taken over, those of the residual stream refused.

cache-steering (arXiv 2507.08799, its authors' code) writes a pickled dict ``{"values": {layer: tensor},
"keys": {layer: tensor}, "activations": ...}``, each tensor ``[n_kv_heads, head_dim]`` or flat. Its values
are ours: means of differences at the prompt's last token. Its keys are means of keys as they were cached,
turned by rotary embedding to positions that differ from pair to pair; what they say of a style cannot be
told from what they say of positions, so they are left out (docs/format.md).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory.errors import VectorError
from factory.files import sha256_of
from factory.target.anatomy import KEYS_REFUSED
from factory.target.download import count_layers, read_config
from factory.vector.vector import SteeringVector

FROM_CACHE_STEERING = "cache-steering"
KEYS_LEFT_OUT = (
    f"{KEYS_REFUSED}: they were averaged as cached, each turned by rotary embedding to another position, "
    "and cannot be turned back"
)
RESIDUAL = (
    "holds directions of the residual stream ({made_by}), which are added to the hidden state at every token. A vector "
    "of svf is added once to keys and values in the cache; no map leads from one to the other. Make one from the same "
    "pairs: write them as a dataset (docs/format.md) and run 'svf generate'"
)
EXPECTED = "expected a .pt file of cache-steering: a dict with 'values' and 'keys', each from layer to tensor"


def import_vector(path: Path, *, model: str, style: str) -> SteeringVector:
    """Read a vector of cache-steering's ``.pt`` file; nothing in the file is executed.

    Raises:
        VectorError: the file is of another kind (which is said), or does not fit ``model``.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise VectorError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if raw.startswith(b"GGUF"):
        raise VectorError(f"{str(path)!r} " + RESIDUAL.format(made_by="GGUF, as repeng and llama.cpp write it"))
    content = _open(path, raw)
    values = _tensors(content, "values", path)
    layers = sorted(values)
    rows = [_by_head(values[layer], model, path) for layer in layers]
    if len({row.shape for row in rows}) > 1:
        raise VectorError(f"{str(path)!r} holds layers of different shapes: {EXPECTED}")
    stacked = torch.stack(rows)
    _check_shape(stacked, layers, model, path)
    pairs = content.get("activations")
    return SteeringVector(
        style_name=style,
        key_vector=torch.zeros_like(stacked),
        value_vector=stacked,
        layer_indices=layers,
        model_name=model,
        metadata={
            "description": f"Imported from {path.name}, made by {FROM_CACHE_STEERING}.",
            "imported_from": FROM_CACHE_STEERING,
            "imported_sha256": sha256_of(raw),
            **_count_pairs(pairs),
        },
        extraction_config={"recipe": FROM_CACHE_STEERING, "keys": KEYS_LEFT_OUT},
    )


def _open(path: Path, raw: bytes) -> Mapping[str, Any]:
    if b"steering_vectors" in raw or b"layer_activations" in raw:
        raise VectorError(f"{str(path)!r} " + RESIDUAL.format(made_by="of steering-vectors"))
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError):
        raise VectorError(f"{str(path)!r} is of no known kind: {EXPECTED}") from None
    if not isinstance(content, Mapping):
        raise VectorError(f"{str(path)!r} holds a {type(content).__name__}: {EXPECTED}")
    if "value_vector" in content:
        raise VectorError(f"{str(path)!r} is a vector of svf already: use it as it is")
    if content and all(isinstance(layer, int) for layer in content):
        raise VectorError(f"{str(path)!r} " + RESIDUAL.format(made_by="one tensor per layer, neither keys nor values"))
    return content


def _tensors(content: Mapping[str, Any], name: str, path: Path) -> dict[int, Tensor]:
    found = content.get(name)
    if not isinstance(found, Mapping) or not found:
        names = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise VectorError(f"{str(path)!r} holds {names}, and no {name!r}: {EXPECTED}")
    tensors = {}
    for layer, tensor in found.items():
        if not str(layer).isdecimal() or not isinstance(tensor, Tensor) or not torch.is_floating_point(tensor):
            raise VectorError(f"{str(path)!r}: {name!r} holds {str(layer)[:40]!r}: {type(tensor).__name__}. {EXPECTED}")
        if not torch.isfinite(tensor).all():
            raise VectorError(f"{str(path)!r}: {name} of layer {layer} are not finite")
        tensors[int(layer)] = tensor.detach().float()
    return tensors


def _by_head(tensor: Tensor, model: str, path: Path) -> Tensor:
    """One layer's values as ``[n_kv_heads, head_dim]``; a flat tensor is cut by what the model's files say."""
    if tensor.dim() == 2:
        return tensor
    if tensor.dim() != 1:
        raise VectorError(f"{str(path)!r} holds tensors of {list(tensor.shape)}, such as of clusters: {EXPECTED}")
    shape = cache_shape(model)
    if shape is None:
        raise VectorError(
            f"{str(path)!r} holds flat tensors of {tensor.numel()} numbers, and the files of {model!r} are not here to "
            "say how many KV heads these are: name a folder of the model, or 'svf download' it first"
        )
    if tensor.numel() != shape[0] * shape[1]:
        raise _misfit(path, list(tensor.shape), shape, model)
    return tensor.reshape(shape)


def _check_shape(values: Tensor, layers: list[int], model: str, path: Path) -> None:
    shape, n_layers = cache_shape(model), count_layers(model)
    if shape is not None and tuple(values.shape[1:]) != shape:
        raise _misfit(path, list(values.shape[1:]), shape, model)
    if n_layers is not None and layers[-1] >= n_layers:
        raise VectorError(f"{str(path)!r} holds layer {layers[-1]}; {model} has layers 0 to {n_layers - 1}")


def _misfit(path: Path, found: list[int], shape: tuple[int, int], model: str) -> VectorError:
    return VectorError(
        f"{str(path)!r} holds tensors of {found}; {model} keeps {shape[0]} KV heads of {shape[1]} numbers per layer"
    )


def cache_shape(model: str) -> tuple[int, int] | None:
    """``(n_kv_heads, head_dim)`` of a model, from its configuration alone; None if that is not on this machine."""
    config = read_config(model)
    return config.cache_shape if config else None


def _count_pairs(activations: object) -> dict[str, int]:
    """How many pairs a file was made from, where it keeps one row of activations per pair."""
    rows = next(iter(activations.values()), None) if isinstance(activations, Mapping) else None
    return {"pairs_used": int(rows.shape[0])} if isinstance(rows, Tensor) and rows.dim() == 2 else {}
