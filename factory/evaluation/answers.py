"""Answers of the target model to held-out questions, steered or not, and how likely it finds them.

Answers are kept in the store under a hash of everything that decides them, so that a task that
runs twice, another style of the run and a resume find them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from factory.evaluation.phases import PhaseBudgets, opens_thought
from factory.evaluation.thought import OPEN
from factory.files import hash_of, sha256_of
from factory.store import Store
from factory.target.chat import Message
from factory.target.model import Target
from factory.vector.steer import Steering, as_messages, generate_batch, left_padded, positions_of

ANSWER_BATCH = 32  # answers generated at once
ANSWERING_VERSION = 2  # of the code that answers: raised where a change of it may change an answer


@dataclass(frozen=True)
class Questioning:
    """Questions for the target model, and the state it is in when it answers."""

    questions: tuple[str, ...]
    max_new_tokens: int
    steering: Steering | None = None
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()  # questions and answers that come before, as turns
    thought_tokens: int = 0  # of a model that thinks before it answers; 0: no thought is expected

    def conversations(self) -> list[list[Message]]:
        """What the model reads, a conversation per question."""
        turns: list[Message] = []
        for question, answer in self.examples:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [as_messages([*turns, {"role": "user", "content": asked}], self.system) for asked in self.questions]

    def thinks(self, target: Target) -> bool:
        """Whether the model thinks before it answers, and has tokens for it."""
        return self.thought_tokens > 0 and opens_thought(target)

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
            "version": ANSWERING_VERSION,
            "model": [target.name, target.revision, target.dtype],
            "texts": [target.prompt_ids(messages) for messages in self.conversations()],
            "max_new_tokens": self.max_new_tokens,
            "steering": added,
            **({"examples": self.examples} if self.examples else {}),
            **({"thought_tokens": self.thought_tokens} if self.thinks(target) else {}),
        }
        return f"answers/{hash_of(asked)}.json"


def ask(target: Target, questioning: Questioning, store: Store) -> list[str]:
    """What the model says, greedily decoded: from the store if it was said before.

    Of a model that thinks, thoughts included: :func:`factory.evaluation.thought.split_thought` takes them off.
    """
    key = questioning.key(target)
    known = store.read_json(key)
    if known is None:
        known = _generate(target, questioning)
        store.write_json(key, known)
    return list(known)


def _generate(target: Target, questioning: Questioning) -> list[str]:
    conversations = questioning.conversations()
    thinking = questioning.thinks(target)
    n_tokens = questioning.max_new_tokens + (questioning.thought_tokens if thinking else 0)
    said: list[str] = []
    for start in range(0, len(conversations), ANSWER_BATCH):
        part = conversations[start : start + ANSWER_BATCH]
        options = {"stopping_criteria": [_budgets(target, questioning)]} if thinking else {}
        answers = generate_batch(target, part, steering=questioning.steering, max_new_tokens=n_tokens, **options)
        said += [f"{OPEN}\n{answer}" for answer in answers] if thinking else answers
    return said


def _budgets(target: Target, questioning: Questioning) -> PhaseBudgets:
    return PhaseBudgets(target, thought_tokens=questioning.thought_tokens, answer_tokens=questioning.max_new_tokens)


@torch.inference_mode()
def losses(target: Target, questions: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """The unsteered model's mean loss (nats per token) of each answer after its question; None if empty."""
    if not answers:
        return []
    prompts = [[*target.prompt_ids(as_messages(question)), target.neutral_id] for question in questions]
    said = [target.text_ids(answer) for answer in answers]
    ids, mask = left_padded(target, [prompt + answer for prompt, answer in zip(prompts, said, strict=True)])
    longest = max(1, *map(len, said))
    model: Any = target.model
    with target.lock:
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), logits_to_keep=longest + 1)
    logits = output.logits[:, :-1].float()  # [batch, longest, vocabulary]: what is said about the next token
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -longest:], reduction="none")
    return [float(loss[-len(answer) :].mean()) if answer else None for loss, answer in zip(each, said, strict=True)]
