"""Loading a target model as the settings say."""

from __future__ import annotations

import torch

from factory.config import Settings
from factory.target.loading import choose_device, load_target
from factory.target.model import Target


def load_configured_target(name: str, settings: Settings) -> Target:
    """Load ``name`` on the device, in the numbers and with the CPU threads of ``settings``.

    A vector's file may name any model: code that comes with a model is run of the configured one alone.
    Where the device has no quantization, load_in_8bit is left out without a warning: it is the default, and
    stands in configurations that are meant for a GPU too.

    Raises:
        ConfigError: ``allowed_models`` names others.
        TargetError: see :func:`factory.target.loading.load_target`.
    """
    settings.require_allowed(name)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    return load_target(
        name,
        device,
        dtype=settings.dtype,
        quantize=settings.quantize if settings.load_in_4bit or device.startswith("cuda") else None,
        trust_remote_code=settings.trust_remote_code and name == settings.target_model,
    )
