"""A trial of the reading before it is used: two short texts, and the model's own reading of them as the measure.

That a model's attention can be replaced is what its code says of itself; some take apart what the cache
gives them all the same (DiffLlama, Doge, JetMoe). So each loaded model is tried once.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from factory.errors import TargetError
from factory.extraction.reader import read_texts
from factory.log import log
from factory.target.kv import read_states_of
from factory.target.model import Target

TEXTS = ([10, 11, 12, 13, 14, 15], [10, 11, 12, 20, 21])  # that begin alike, so that a pass goes on from another
TOLERANCE = {torch.float32: 1e-3}  # of a value's length, in the middle layer of all; rough numbers go apart further
ROUGH = 0.3
_tried: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_share_passes(target: Target) -> bool:
    """Whether several texts can be read in one pass of the model; tried once for each loaded model.

    Raises:
        TargetError: not even one text by itself gives the states that the model's own reading gives.
    """
    with target.lock:
        if target.model not in _tried:
            _tried[target.model] = _try(target)
        return _tried[target.model]


def _try(target: Target) -> bool:
    if target.model._supports_attention_backend and _trouble(target, packed=True) is None:
        return True
    trouble = _trouble(target, packed=False)
    if trouble is not None:
        raise TargetError(f"{target.name}: its keys and values cannot be read: {trouble}. Choose another model.")
    log.info("%s: each text is read in a pass of its own, as its attention cannot be replaced", target.name)
    return False


def _trouble(target: Target, *, packed: bool) -> str | None:
    """What is wrong with what is read, if anything."""
    last = [[len(text) - 1] for text in TEXTS]
    try:
        read = read_texts(TEXTS, last, target, range(target.n_layers), budget=None, packed=packed)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    apart = []
    for text, states in zip(TEXTS, read, strict=True):
        usual = read_states_of(target.model, target.tensor([text]))
        for layer, found in enumerate(states.values):
            expected = usual[layer][1][0, :, -1].float().cpu()  # [n_kv_heads, head_dim]
            apart.append(float((found - expected).norm() / expected.norm().clamp(min=1e-12)))
    middle = sorted(apart)[len(apart) // 2]
    if middle <= TOLERANCE.get(target.model.dtype, ROUGH):
        return None
    return f"values differ by {middle:.0%} from those of the model's own reading"
