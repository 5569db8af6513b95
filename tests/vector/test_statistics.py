"""Figures that stream by are those that one would compute with everything in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factory.extraction.extract import Differences
from factory.vector.mean import Origin, reduce_differences
from factory.vector.statistics import reliability

SHAPE = (3, 2, 8)


def planted_differences(n_pairs: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A unit direction, and ``n_pairs`` noisy copies of it."""
    torch.manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(SHAPE).flatten(), dim=0).view(SHAPE)
    return direction, direction + noise * torch.randn(n_pairs, *SHAPE)


def reduce(values: torch.Tensor, batch_size: int = 5, recipe: str = "response_mean"):
    """A vector from values alone, in batches."""
    batches = [
        Differences([f"p{n}" for n in range(start, start + len(part))], part.clone(), part)
        for start, part in ((s, values[s : s + batch_size]) for s in range(0, len(values), batch_size))
    ]
    origin = Origin("planted", "model", [1, 2, 3], {"recipe": recipe, "model_revision": "r"})
    return reduce_differences(lambda: batches, origin)


def test_a_planted_direction_is_recovered_from_noise_and_better_from_more_pairs():
    direction, values = planted_differences(512, noise=0.2)

    few, many = reduce(values[:8]), reduce(values)

    def agreement(vector):
        return torch.nn.functional.cosine_similarity(vector.value_vector.flatten(), direction.flatten(), dim=0)

    assert agreement(many) > 0.99
    assert agreement(many) > agreement(few)
    assert many.metadata["quality"]["enough_pairs"]
    assert not few.metadata["quality"]["enough_pairs"]


def test_the_streamed_figures_equal_those_computed_at_once():
    _, values = planted_differences(37, noise=0.1)
    exact = values.numpy().astype(np.float64).reshape(37, -1)

    quality = reduce(values).metadata["quality"]

    mean = exact.mean(0)
    error = exact.std(0, ddof=1) / np.sqrt(37)
    cosines = exact @ mean / np.linalg.norm(exact, axis=1) / np.linalg.norm(mean)
    odd, even = exact[1::2].sum(0), exact[::2].sum(0)
    by_layer = [np.linalg.norm(part) for part in np.split(error, SHAPE[0])]
    assert quality["standard_errors"] == pytest.approx(by_layer, abs=1e-5)
    assert quality["mean_pair_cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert quality["split_half_cosine"] == pytest.approx(
        odd @ even / np.linalg.norm(odd) / np.linalg.norm(even), abs=1e-5
    )
    assert sum(quality["pair_cosine_bins"]) == 37


def test_the_pair_that_disagrees_most_is_named_first():
    _, values = planted_differences(20, noise=0.02)
    values[13] = -values[13]

    outliers = reduce(values).metadata["quality"]["outliers"]

    assert outliers[0]["pair_id"] == "p13"
    assert outliers[0]["cosine"] < 0 < outliers[1]["cosine"]


def test_pairs_read_with_the_same_examples_go_to_the_same_half():
    # Given eight neighbours that share one accident, eight others that share another, and no style at all
    torch.manual_seed(1)
    accidents = torch.randn(2, *SHAPE)
    values = torch.cat([accidents[:1].expand(8, *SHAPE), accidents[1:].expand(8, *SHAPE)])

    honest = reduce(values, recipe="fewshot").metadata["quality"]["split_half_cosine"]
    naive = reduce(values, recipe="response_mean").metadata["quality"]["split_half_cosine"]

    assert naive > 0.99
    assert abs(honest) < 0.5


@pytest.mark.parametrize(("half", "whole"), [(0.5, 2 / 3), (1.0, 1.0), (0.0, 0.0), (-0.5, 0.0), (-1.0, 0.0)])
def test_the_reliability_of_the_whole_follows_from_its_halves(half, whole):
    assert reliability(half) == pytest.approx(whole)
