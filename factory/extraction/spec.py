"""What extraction reads: target model, layers, recipe and limits, frozen with the run."""

from __future__ import annotations

from factory.frozen import Frozen


class ExtractionSpec(Frozen):
    """What the target model reads, and which states are taken."""

    target_model: str
    target_layers: str | int | list[int]
    recipe: str
    n_shots: int
    n_tokens: int | None = None
    max_sequence_length: int
    batch_tokens: int | None = None
    dtype: str = "auto"
    quantize: str | None = None
