"""The naive way, written for reading: one text at a time, the full model, its own cache.

Nothing of the factory's extraction is used, only what it says it reads.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial

import torch

from factory import Target, render


def naive_states(target: Target, ids: list[int], positions: list[int], layers: list[int]):
    """Keys and values of one text at its positions, averaged; keys as they were before the model turned them."""
    with torch.no_grad(), recording(target.model) as turned:
        cache = target.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    cache = getattr(cache, "self_attention_cache", cache)  # a BERT has one for an encoder too
    keys, values = [], []
    for layer in layers:
        k, v = cache.layers[layer].keys[0], cache.layers[layer].values[0]  # [n_kv_heads, n_tokens, head_dim]
        k = unturned(k, turned)
        keys.append(torch.stack([k[:, at] for at in positions]).mean(0))
        values.append(torch.stack([v[:, at] for at in positions]).mean(0))
    return torch.stack(keys), torch.stack(values)


@contextmanager
def recording(model):
    """Note what the model's own rotary functions are given and what they return."""
    noted = []
    functions = [
        (sys.modules[name], attribute)
        for name in {type(module).__module__ for module in model.modules()}
        for attribute in ("apply_rotary_pos_emb", "apply_rotary_emb")
        if hasattr(sys.modules[name], attribute)
    ]
    usual = [getattr(*place) for place in functions]

    def noting(function):
        def call(query, key, *rest, **options):
            results = function(query, key, *rest, **options)
            # GPT-J turns queries and keys by a call each, and the second argument is an angle
            noted.append((query, results) if isinstance(results, torch.Tensor) else (key, results[1]))
            return results

        return call

    for place, function in zip(functions, usual, strict=True):
        setattr(*place, noting(function))
    try:
        yield noted
    finally:
        for place, function in zip(functions, usual, strict=True):
            setattr(*place, function)


def unturned(cached, turned):
    """The key that became ``cached`` [n_kv_heads, n_tokens, head_dim]; itself, where nothing turned it."""
    for before, after in turned:
        for given, made in ((before[0], after[0]), (before[0].transpose(0, 1), after[0].transpose(0, 1))):
            for norm in (torch.Tensor.float, partial(l2_normed, eps=1e-5), partial(l2_normed, eps=1e-6)):
                part, found = cached[..., : made.shape[-1]].float(), norm(made).float()
                if made.shape[:2] == cached.shape[:2] and torch.allclose(found, part, atol=1e-6, rtol=0):
                    return torch.cat([norm(given), cached[..., made.shape[-1] :]], dim=-1)
    return cached


def l2_normed(states, eps):
    """What Llama 4 and nanochat do to keys once they are turned."""
    return states.float() * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + eps)


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
