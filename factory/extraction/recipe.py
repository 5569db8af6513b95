"""Recipes: which text the target model reads for a pair, and which tokens' states are taken.

A recipe is a small named function from a pair to a :class:`Rendering`. ``fewshot`` comes from
KV cache steering (arXiv 2507.08799), ``response_mean`` from persona vectors (arXiv 2507.21509),
``response_last`` from contrastive activation addition (arXiv 2312.06681), ``system_prompt`` from
the same idea with instructions in the place of answers. This module does not run the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from factory.errors import ConfigError, PairRejected, UnknownRecipe
from factory.pairs.pair import BATCH_SIZE, CIRCLE, N_SHOTS, ContrastivePair, cut_batches
from factory.target.chat import Message
from factory.target.model import Target

NEUTRAL_INSTRUCTION = "Answer the question in plain, connected prose."


@dataclass(frozen=True)
class Recipe:
    """A named way to render pairs, with its numbers.

    ``n_shots``: examples in a ``fewshot`` text; fewer where the batch is too small or the text
    would be too long. ``n_tokens``: how many of the response's first
    tokens ``response_mean`` averages (None: all). ``max_sequence_length``: the longest text, in
    tokens; a longer pair is rejected, never cut.
    """

    name: str = "fewshot"
    n_shots: int = N_SHOTS
    n_tokens: int | None = None
    max_sequence_length: int = 2048

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise UnknownRecipe(f"unknown recipe {self.name!r}: choose one of {', '.join(RECIPES)}")
        if self.n_shots < 1 or (self.n_tokens is not None and self.n_tokens < 1):
            raise ConfigError(f"recipe {self.name}: n_shots and n_tokens must be at least 1")


@dataclass(frozen=True)
class Rendering:
    """What the target model reads for one pair.

    ``*_ids`` are token ids; ``*_positions`` are indices into them whose keys and values are
    averaged, then subtracted: positive minus negative. ``n_examples``: how many examples a
    ``fewshot`` text has.
    """

    positive_ids: list[int]
    negative_ids: list[int]
    positive_positions: list[int]
    negative_positions: list[int]
    n_examples: int | None = None


@dataclass(frozen=True)
class Side:
    """The positive or the negative half of a pair's text: conversations in, token ids out."""

    target: Target
    positive: bool

    def answer(self, pair: ContrastivePair) -> str:
        """This side's response."""
        return pair.positive_response if self.positive else pair.negative_response

    def turn(self, pair: ContrastivePair) -> list[Message]:
        """The pair's question and this side's response."""
        return [{"role": "user", "content": pair.question}, {"role": "assistant", "content": self.answer(pair)}]


Ids = tuple[list[int], list[int]]  # token ids, positions to read


def _fewshot(side: Side, pair: ContrastivePair, group: Sequence[ContrastivePair], recipe: Recipe) -> Ids:
    """Examples that differ between the sides, then one question that does not; read its last token."""
    examples, question = draw_examples(pair, group, recipe.n_shots)
    messages = [message for example in examples for message in side.turn(example)]
    ids = side.target.prompt_ids([*messages, {"role": "user", "content": question}])
    return ids, [len(ids) - 1]


def _response_mean(side: Side, pair: ContrastivePair, group: Sequence[ContrastivePair], recipe: Recipe) -> Ids:
    """The question and this side's response; read the response's first ``n_tokens`` tokens."""
    ids, span = side.target.response_ids(side.turn(pair))
    span = span[: recipe.n_tokens]
    return ids[: span[-1] + 1], span  # what follows the last token read cannot change it


def _response_last(side: Side, pair: ContrastivePair, group: Sequence[ContrastivePair], recipe: Recipe) -> Ids:
    """The question and this side's response; read the response's last token."""
    ids, span = side.target.response_ids(side.turn(pair))
    return ids[: span[-1] + 1], span[-1:]


def _system_prompt(side: Side, pair: ContrastivePair, group: Sequence[ContrastivePair], recipe: Recipe) -> Ids:
    """The side's instruction as the system message, then the question; read the last token."""
    instruction = side_instruction(pair, positive=side.positive)
    messages: list[Message] = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": pair.question},
    ]
    ids = side.target.prompt_ids(messages)
    return ids, [len(ids) - 1]


RECIPES: dict[str, Callable[[Side, ContrastivePair, Sequence[ContrastivePair], Recipe], Ids]] = {
    "fewshot": _fewshot,
    "response_mean": _response_mean,
    "response_last": _response_last,
    "system_prompt": _system_prompt,
}


def as_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe from its name, with the default numbers, or the recipe itself.

    Raises:
        UnknownRecipe: there is no recipe of that name.
    """
    return recipe if isinstance(recipe, Recipe) else Recipe(recipe)


def draw_examples(
    pair: ContrastivePair, group: Sequence[ContrastivePair], n_shots: int
) -> tuple[list[ContrastivePair], str]:
    """The examples of a few-shot text, ending with ``pair`` itself, and another question of the group.

    Neighbours of a batch form a circle and share the examples before their own, so that the model
    reads those once for all of them; the draw depends on pair ids alone. A small group gives
    fewer examples, and a pair that is alone is followed by its own question.
    """
    place = next(index for index, other in enumerate(group) if other.pair_id == pair.pair_id)
    circle = group[place // CIRCLE * CIRCLE :][:CIRCLE]
    inside = {other.pair_id for other in circle}
    outside = [other for other in group if other.pair_id not in inside]
    n_companions = min(n_shots - 1, max(0, len(group) - 2))
    if len(outside) < n_companions:  # a small group: share nothing
        circle, outside = [pair], [other for other in group if other.pair_id != pair.pair_id]
    companions = _shuffled(outside, seed=circle[0].pair_id)[:n_companions]
    taken = {example.question for example in [*companions, pair]}
    questions = [other.question for other in _shuffled(group, seed=pair.pair_id) if other.question not in taken]
    return [*companions, pair], (questions or [pair.question])[0]


def _shuffled(pairs: Sequence[ContrastivePair], seed: str) -> list[ContrastivePair]:
    return sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed}\n{pair.pair_id}".encode()).digest())


def require_readable(pair: ContrastivePair, target: Target, recipe: Recipe) -> None:
    """Refuse a pair that would make a wrong difference, or spoil others as their example.

    Raises:
        PairRejected: an empty or identical response, text that the target's tokenizer or chat
            template would take for a special token, or an example that is too long by itself.
    """
    texts = _read_of(pair, recipe)
    for name, text in texts.items():
        if not text.strip():
            raise PairRejected("empty", f"{pair.pair_id}: the {name} text is empty")
        special = target.special_text_in(text)
        if special:
            raise PairRejected("special_token", f"{pair.pair_id}: the {name} text holds {special!r}")
    if texts["positive"].strip() == texts["negative"].strip():
        raise PairRejected("identical", f"{pair.pair_id}: both sides are the same text")
    if recipe.name == "fewshot":
        for positive in (True, False):
            _check_length(pair, len(target.prompt_ids(Side(target, positive).turn(pair))), target, recipe)


def side_instruction(pair: ContrastivePair, *, positive: bool) -> str:
    """What asked for a side's answer, without the question itself."""
    instruction = pair.positive_prompt if positive else pair.negative_prompt
    return instruction.replace(pair.question, "").strip() or NEUTRAL_INSTRUCTION


def _read_of(pair: ContrastivePair, recipe: Recipe) -> dict[str, str]:
    """What of a pair the target model reads: ``system_prompt`` reads no answer, only what asked for it."""
    if recipe.name == "system_prompt":
        return {
            "question": pair.question,
            "positive": side_instruction(pair, positive=True),
            "negative": side_instruction(pair, positive=False),
        }
    return {"question": pair.question, "positive": pair.positive_response, "negative": pair.negative_response}


def _check_length(pair: ContrastivePair, n_tokens: int, target: Target, recipe: Recipe) -> None:
    limit = min(recipe.max_sequence_length, target.longest_text)
    if n_tokens > limit:
        why = "max_sequence_length" if limit == recipe.max_sequence_length else f"the model's {target.limited_by}"
        message = f"{pair.pair_id}: {n_tokens} tokens, at most {limit} are read ({why}), none cut off"
        raise PairRejected("too_long", message)


def usable_pairs(
    pairs: Sequence[ContrastivePair], target: Target, recipe: Recipe
) -> tuple[list[ContrastivePair], list[tuple[ContrastivePair, PairRejected]]]:
    """Split pairs into those that can be read and those that cannot, with the reason."""
    usable, rejected = [], []
    for pair in pairs:
        try:
            require_readable(pair, target, recipe)
            usable.append(pair)
        except PairRejected as rejection:
            rejected.append((pair, rejection))
    return usable, rejected


def render_in_group(
    pair: ContrastivePair, group: Sequence[ContrastivePair], target: Target, recipe: Recipe
) -> Rendering:
    """Render a pair whose batch, reduced to its usable pairs, is ``group``.

    A few-shot text that is too long gets fewer examples, the same number on both sides.

    Raises:
        PairRejected: the text is too long, or both sides are the same text.
    """
    strategy = RECIPES[recipe.name]
    shorter = range(recipe.n_shots, 0, -1) if recipe.name == "fewshot" else [recipe.n_shots]
    limit = min(recipe.max_sequence_length, target.longest_text)
    for n_shots in shorter:
        fewer = replace(recipe, n_shots=n_shots)
        positive_ids, positive_positions = strategy(Side(target, True), pair, group, fewer)
        negative_ids, negative_positions = strategy(Side(target, False), pair, group, fewer)
        longest = max(len(positive_ids), len(negative_ids))
        if longest <= limit:
            break
    _check_length(pair, longest, target, recipe)
    if positive_ids == negative_ids:
        raise PairRejected("identical", f"{pair.pair_id}: both sides are the same {longest} tokens")
    n_examples = len(draw_examples(pair, group, n_shots)[0]) if recipe.name == "fewshot" else None
    return Rendering(positive_ids, negative_ids, positive_positions, negative_positions, n_examples)


def render(
    pair: ContrastivePair,
    target: Target,
    *,
    recipe: Recipe | str = Recipe.name,
    pairs: Sequence[ContrastivePair] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Rendering:
    """What the target model reads for ``pair``, as extraction does it.

    ``pairs`` are all pairs of the style: ``fewshot`` takes its examples from the pair's batch
    among them.

    Raises:
        PairRejected: the pair cannot be used; ``reason`` says why.
        UnknownRecipe: there is no such recipe.
    """
    how = as_recipe(recipe)
    require_readable(pair, target, how)
    batches = cut_batches(list(pairs or [pair]), batch_size)
    batch = next((batch for batch in batches if any(other.pair_id == pair.pair_id for other in batch)), [pair])
    return render_in_group(pair, usable_pairs(batch, target, how)[0], target, how)
