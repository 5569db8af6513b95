"""The target model that a worker keeps loaded between its tasks."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from factory.config import Settings
from factory.extraction.spec import ExtractionSpec
from factory.log import log
from factory.run.spec import RunSpec

if TYPE_CHECKING:
    from factory.extraction.recipe import Recipe
    from factory.learning.prompts import Prompts
    from factory.target.model import Target


_resident: dict[tuple[Any, ...], tuple[int | None, Target]] = {}  # this worker's model, and how deep it was loaded
_prompts: list[Prompts] = []  # that the same model has read, at most one run's day of them
_loading = Lock()  # two threads would load it twice


def recipe_of(spec: ExtractionSpec) -> Recipe:
    """The recipe that a run asks for."""
    from factory.extraction.recipe import Recipe

    return Recipe(spec.recipe, spec.n_shots, spec.n_tokens, spec.max_sequence_length)


def load_resident_target(
    name: str, device: str, dtype: str, quantize: str | None, trust_remote_code: bool, depth: int | None
) -> Target:
    """The target model of this worker, loaded with its first task and kept between tasks.

    Another model, or more of its layers, takes the place of the one before, which goes first: two
    may not fit.
    """
    with _loading:
        return _load_resident((name, device, dtype, quantize, trust_remote_code), depth)


def _load_resident(asked: tuple[str, str, str, str | None, bool], depth: int | None) -> Target:
    name, device, dtype, quantize, trust_remote_code = asked
    loaded, target = _resident.get(asked, (0, None))
    if target is not None and (loaded is None or (depth is not None and depth <= loaded)):
        return target
    from factory.target.loading import load_target

    log.info("loading target model %s%s", name, f", its first {depth} layers" if depth else "")
    target = None
    _resident.clear()
    _prompts.clear()
    target = load_target(name, device, dtype=dtype, quantize=quantize, trust_remote_code=trust_remote_code, depth=depth)
    _resident[asked] = depth, target
    return target


def target_of(run: RunSpec, settings: Settings) -> Target:
    """The run's target model, if this worker may load it; only as deep as it is read if it need not answer.

    Raises:
        ConfigError: the model is not in this worker's ``allowed_models``.
        TargetError: it cannot be loaded.
    """
    import torch

    from factory.target.layers import depth_to_read

    spec = run.extraction
    settings.require_allowed(spec.target_model, for_others=True)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    depth = depth_to_read(spec.target_layers) if run.evaluation is None and run.learning is None else None
    target = load_resident_target(
        spec.target_model, settings.device, spec.dtype, spec.quantize, settings.trust_remote_code, depth
    )
    return target.on(run.day)


def prompts_of(target: Target) -> Prompts:
    """What ``target`` has read of prompts, kept between the tasks of this worker."""
    from factory.learning.prompts import Prompts

    with _loading:
        if not _prompts or _prompts[0].target.model is not target.model or _prompts[0].target.date != target.date:
            _prompts[:] = [Prompts(target)]
        return _prompts[0]
