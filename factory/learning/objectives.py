"""Objectives: what learning makes smaller. Each is a small function from pairs and a vector to a summed loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from factory.learning.reading import ResponseReader
from factory.learning.spec import Learning
from factory.pairs.pair import ContrastivePair

Pairs = Sequence[ContrastivePair]


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
    questions, plain = _questions(pairs), [pair.negative_response for pair in pairs]
    with torch.no_grad():
        before, _, real = reader.log_probabilities(questions, plain, None)
    after, _, _ = reader.log_probabilities(questions, plain, vector)
    moved = ((before.exp() * (before - after)).sum(dim=2) * real).sum(dim=1) / real.sum(dim=1)
    return likelihood(reader, pairs, vector, learning) + learning.penalty * moved.sum()


def _questions(pairs: Pairs) -> list[str]:
    return [pair.question for pair in pairs]


OBJECTIVES: dict[str, Callable[[ResponseReader, Pairs, Tensor, Learning], Tensor]] = {
    "likelihood": likelihood,
    "preference": preference,
    "stay": stay,
}
