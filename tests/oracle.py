"""The naive way, written for reading: one text at a time, the full model, its own cache.

Nothing of the factory's extraction is used, only what it says it reads.
"""

from __future__ import annotations

import torch

from factory import Target, render


def naive_states(target: Target, ids: list[int], positions: list[int], layers: list[int]):
    """Keys and values of one text at its positions, averaged; keys rotated back by hand."""
    with torch.no_grad():
        cache = target.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    keys, values = [], []
    for layer in layers:
        k, v = cache.layers[layer].keys[0], cache.layers[layer].values[0]  # [n_kv_heads, n_tokens, head_dim]
        keys.append(torch.stack([unrotate(target, k[:, at], at, layer) for at in positions]).mean(0))
        values.append(torch.stack([v[:, at] for at in positions]).mean(0))
    return torch.stack(keys), torch.stack(values)


def unrotate(target: Target, key, position: int, layer: int):
    """Turn each pair of numbers of a key back by the angle of its position."""
    rotary = getattr(target.model.base_model, "rotary_emb", None)
    if rotary is None:
        return key
    kinds = getattr(target.model.config, "layer_types", None)
    own = [kinds[layer]] if hasattr(rotary, "layer_types") else []
    cos, sin = rotary(key.float(), torch.tensor([[position]]), *own)
    cos, sin = cos[0, 0], sin[0, 0]
    half = cos.shape[-1] // 2  # what lies behind the rotated numbers is never turned
    out = key.clone()
    for i in range(half):
        c, s = cos[i], sin[i]
        a, b = key[..., i], key[..., i + half]
        square = c * c + s * s
        out[..., i] = (a * c + b * s) / square
        out[..., i + half] = (b * c - a * s) / square
    return out


def naive_vector(pairs, target: Target, layers: list[int], **rendering):
    """Mean difference over pairs, one by one."""
    differences = []
    for pair in pairs:
        text = render(pair, target, pairs=pairs, **rendering)
        positive = naive_states(target, text.positive_ids, text.positive_positions, layers)
        negative = naive_states(target, text.negative_ids, text.negative_positions, layers)
        differences.append((positive[0] - negative[0], positive[1] - negative[1]))
    keys = torch.stack([d[0] for d in differences]).double().mean(0)
    values = torch.stack([d[1] for d in differences]).double().mean(0)
    return keys.float(), values.float()
