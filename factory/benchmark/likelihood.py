"""Multiple choice by likelihood: which letter the model finds likeliest, before it says anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factory.benchmark.condition import Condition
from factory.benchmark.item import Item
from factory.evaluation.answers import Questioning
from factory.files import hash_of
from factory.store import Store
from factory.target.model import Target
from factory.vector.steer import left_padded, positions_of, steered_cache

BATCH = 16  # items per forward pass


def likeliest_letters(target: Target, items: Sequence[Item], condition: Condition, store: Store) -> list[str]:
    """For each item the letter with the highest probability as the first token of the answer.

    One forward pass over the prompt and its (steered) cache; a letter counts with and without a space
    before it, whichever is likelier. Kept in the store after each batch.
    """
    found: list[str] = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        asked = Questioning(
            tuple(item.prompt for item in part), 1, condition.steering, condition.system, condition.examples
        )
        key = f"letters/{hash_of([asked.key(target), [item.letters for item in part]])}.json"
        known = store.read_json(key)
        if known is None:
            likely = _next_token(target, asked)  # [batch, vocabulary], log-probabilities
            known = [_best(target, row, item.letters) for row, item in zip(likely, part, strict=True)]
            store.write_json(key, known)
        found += known
    return found


@torch.inference_mode()
def _next_token(target: Target, questioning: Questioning) -> Tensor:
    prompts = [[*target.prompt_ids(messages), target.neutral_id] for messages in questioning.conversations()]
    ids, mask = left_padded(target, prompts)
    cache = steered_cache(target, ids, mask, questioning.steering)
    model: Any = target.model
    output = model(
        input_ids=ids[:, -1:],
        attention_mask=mask,
        position_ids=positions_of(mask)[:, -1:],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.as_tensor(output.logits)[:, -1].float().log_softmax(dim=-1)


def _best(target: Target, likely: Tensor, letters: str) -> str:
    def of(letter: str) -> float:
        forms = (target.text_ids(letter), target.text_ids(f" {letter}"))
        return max(float(likely[ids[0]]) for ids in forms if len(ids) == 1)

    return max(letters, key=of)
