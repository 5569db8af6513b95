"""The environment of a measurement: what besides vector, questions and settings decides its figures."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from factory.evaluation.figures import Environment
from factory.extras import DISTRIBUTION
from factory.target.model import Target

DECIDING = (DISTRIBUTION, "torch", "transformers", "numpy", "scipy")  # packages that compute the figures


def environment_of(target: Target) -> Environment:
    """Where ``target`` is measured: model, numbers, device and versions; no host, no time."""
    on_gpu = target.device.type == "cuda"
    return Environment(
        model=target.name,
        model_revision=target.revision,
        dtype=target.dtype,
        date=target.date if target.chat.is_dated else None,
        device=torch.cuda.get_device_name(target.device) if on_gpu else target.device.type,
        machine=platform.machine(),
        versions={"python": platform.python_version()} | {name: version(name) for name in DECIDING},
    )
