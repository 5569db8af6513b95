"""What is learned from: the responses as they were written, or what the model itself says in the style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from factory.pairs.fluency import is_looping
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import Style
from factory.target.chat import Message
from factory.target.model import Target
from factory.vector.steer import generate_batch

GROUP = 16  # pairs that are answered at once, and share their examples
N_EXAMPLES = 3
LONGEST = 120  # tokens of an answer


def on_policy(pairs: Sequence[ContrastivePair], target: Target, style: Style) -> list[ContrastivePair]:
    """The pairs, with what the model itself answers in the place of written responses.

    It is shown three other pairs, and where that does not bring it into the style, told the style's
    instruction too. Its answer is taken only where the style's markers are in it and it does not loop; the
    other pairs keep their written response. Decoding is greedy, and groups follow from pair ids, so
    that the same pairs give the same answers anywhere. The idea is PSR's (arXiv 2605.03907): imitate what a
    prompt does.
    """
    ordered = sorted(pairs, key=lambda pair: pair.pair_id)
    own: dict[str, str] = {}
    for start in range(0, len(ordered), GROUP):
        examples = _examples(ordered, start)
        for instruction in ("", f"{style.instruction()}\n\n"):
            asked = [pair for pair in ordered[start : start + GROUP] if pair.pair_id not in own]
            talks = [_conversation(examples, f"{instruction}{pair.question}") for pair in asked]
            said = generate_batch(target, talks, max_new_tokens=LONGEST) if talks else []
            own |= {
                pair.pair_id: answer
                for pair, answer in zip(asked, said, strict=True)
                if style.is_shown_in(answer) and not is_looping(answer)
            }
    return [replace(pair, positive_response=own.get(pair.pair_id, pair.positive_response)) for pair in pairs]


def _examples(ordered: Sequence[ContrastivePair], start: int) -> list[ContrastivePair]:
    """Pairs of other groups; none where there is one group alone, so that no answer has its own question before it."""
    outside = [*ordered[start + GROUP :], *ordered[:start]]
    return outside[:N_EXAMPLES]


def _conversation(examples: Sequence[ContrastivePair], question: str) -> list[Message]:
    turns: list[Message] = []
    for example in examples:
        turns.append({"role": "user", "content": example.question})
        turns.append({"role": "assistant", "content": example.positive_response})
    return [*turns, {"role": "user", "content": question}]
