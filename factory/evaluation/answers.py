"""Answers of the target model to held-out questions, steered or not, and how likely it finds them.

Answers are kept in the store under a hash of everything that decides them, so that a task that
runs twice, another style of the run and a resume find them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from factory.files import hash_of, sha256_of
from factory.store import Store
from factory.target.model import Message, Target
from factory.vector.steer import Steering, as_messages, generate_batch, left_padded, positions_of

ANSWER_BATCH = 32  # answers generated at once


@dataclass(frozen=True)
class Questioning:
    """Questions for the target model, and the state it is in when it answers."""

    questions: tuple[str, ...]
    max_new_tokens: int
    steering: Steering | None = None
    system: str | None = None

    def conversations(self) -> list[list[Message]]:
        """What the model reads, a conversation a question."""
        return [as_messages(question, self.system) for question in self.questions]

    def key(self, target: Target) -> str:
        """Where the answers lie in the store."""
        steering = self.steering
        added = steering and {
            "values": sha256_of(steering.vector.value_vector.numpy().tobytes()),
            "keys": sha256_of(steering.vector.key_vector.numpy().tobytes()) if steering.key_strength else None,
            "layers": steering.vector.layer_indices,
            "strengths": [steering.strength, steering.key_strength],
            "n_positions": steering.n_positions,
        }
        asked = {
            "model": [target.name, target.revision, target.dtype, target.template_sha256],
            "questions": self.questions,
            "system": self.system,
            "max_new_tokens": self.max_new_tokens,
            "steering": added,
        }
        return f"answers/{hash_of(asked)}.json"


def ask(target: Target, questioning: Questioning, store: Store) -> list[str]:
    """The answers, greedily decoded: from the store if they were given before."""
    key = questioning.key(target)
    known = store.read_json(key)
    if known is None:
        conversations = questioning.conversations()
        known = []
        for start in range(0, len(conversations), ANSWER_BATCH):
            known += generate_batch(
                target,
                conversations[start : start + ANSWER_BATCH],
                steering=questioning.steering,
                max_new_tokens=questioning.max_new_tokens,
            )
        store.write_json(key, known)
    return list(known)


@torch.inference_mode()
def perplexities(target: Target, questions: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """How surprised the unsteered model is by each answer: exp of the mean loss a token; None if empty."""
    if not answers:
        return []
    prompts = [[*target.prompt_ids(as_messages(question)), target.neutral_id] for question in questions]
    said = [target.text_ids(answer) for answer in answers]
    ids, mask = left_padded(target, [prompt + answer for prompt, answer in zip(prompts, said, strict=True)])
    longest = max(1, *map(len, said))
    model: Any = target.model
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), logits_to_keep=longest + 1)
    logits = output.logits[:, :-1].float()  # [batch, longest, vocabulary]: what is said about the next token
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -longest:], reduction="none")
    return [
        round(float(loss[-len(answer) :].mean().exp()), 3) if answer else None
        for loss, answer in zip(losses, said, strict=True)
    ]
