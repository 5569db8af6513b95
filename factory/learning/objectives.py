"""Objectives: what learning makes smaller. Each is a small function from pairs and a vector to a summed loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from factory.learning.reading import ResponseReader
from factory.learning.sentences import loop_of
from factory.learning.spec import Learning
from factory.pairs.pair import ContrastivePair

Pairs = Sequence[ContrastivePair]
CERTAIN = 1 - 1e-4  # probability above which a repeated token has no gradient more, as its logarithm has no bound


def likelihood(reader: ResponseReader, pairs: Pairs, vector: Tensor, learning: Learning) -> Tensor:
    """Negative log-likelihood of the positive responses, per token; summed over pairs."""
    return -reader.likelihoods(_questions(pairs), [pair.positive_response for pair in pairs], vector).sum()


def preference(reader: ResponseReader, pairs: Pairs, vector: Tensor, learning: Learning) -> Tensor:
    """Prefer the positive response over the negative one, whatever the unsteered model prefers.

    The steering side of RePS (arXiv 2505.20809): length-normalised and without a reference policy;
    the positive side weighs as much more as the unsteered model prefers the negative. Its other
    half, which learns the negated vector for suppression, is left out.
    """
    questions = _questions(pairs)
    texts = [pair.positive_response for pair in pairs], [pair.negative_response for pair in pairs]
    with torch.no_grad():
        wanted, plain = (reader.likelihoods(questions, side, None) for side in texts)
        weight = (reader.n_tokens * (plain - wanted)).clamp(min=1.0)
    wanted, plain = (reader.likelihoods(questions, side, vector) for side in texts)
    return -logsigmoid(weight * wanted - plain).sum()


def stay(reader: ResponseReader, pairs: Pairs, vector: Tensor, learning: Learning) -> Tensor:
    """The likelihood, and a penalty for moving the model where the style does not matter.

    The penalty is the KL divergence (nats per token) from the unsteered model on the negative,
    plain response.
    """
    questions, plain = _questions(pairs), [reader.response_ids(pair.negative_response) for pair in pairs]
    with torch.no_grad():
        before, _, real = reader.log_probabilities(questions, plain, None)
    after, _, _ = reader.log_probabilities(questions, plain, vector)
    moved = ((before.exp() * (before - after)).sum(dim=2) * real).sum(dim=1) / real.sum(dim=1)
    return likelihood(reader, pairs, vector, learning) + learning.penalty * moved.sum()


def loop_unlikelihood(reader: ResponseReader, pairs: Pairs, vector: Tensor) -> Tensor:
    """How readily the model says a sentence again, in nats per token of it; summed over pairs.

    The unlikelihood loss of Welleck et al. (arXiv 1908.04319), on the positive response with one sentence
    repeated in the place of the model's own repetitions: no text must be made, and the loss sees
    what a likelihood never reads, the middle of a loop.
    """
    made = [(pair.question, loop) for pair in pairs if (loop := loop_of(pair.positive_response))]
    if not made:
        return vector.new_zeros(()) * vector.sum()
    before = [reader.target.text_ids(loop.before) for _, loop in made]
    said = [ids + reader.target.text_ids(loop.again) for ids, (_, loop) in zip(before, made, strict=True)]
    said = [ids[: reader.n_tokens] for ids in said]
    found, tokens, real = reader.log_probabilities([question for question, _ in made], said, vector)
    again = torch.arange(tokens.shape[1], device=tokens.device) >= reader.target.tensor(list(map(len, before)))[:, None]
    repeats = found.gather(2, tokens[:, :, None])[:, :, 0]  # [batch, longest]
    unlikely = -torch.log1p(-repeats.exp().clamp(max=CERTAIN)) * (again & real.bool())
    return (unlikely.sum(dim=1) / (again & real.bool()).sum(dim=1).clamp(min=1)).sum()


def _questions(pairs: Pairs) -> list[str]:
    return [pair.question for pair in pairs]


OBJECTIVES: dict[str, Callable[[ResponseReader, Pairs, Tensor, Learning], Tensor]] = {
    "likelihood": likelihood,
    "preference": preference,
    "stay": stay,
}
