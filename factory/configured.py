"""Loading a target model as the settings say."""

from __future__ import annotations

import torch

from factory.config import Settings
from factory.target.model import Target, choose_device, load_target


def load_configured_target(name: str, settings: Settings) -> Target:
    """Load ``name`` on the device, in the numbers and with the CPU threads of ``settings``.

    A vector's file may name any model: code that comes with a model is run of the configured one alone.
    Quantization that nobody wrote down is left out where the device has none, without a warning.

    Raises:
        TargetError: see :func:`factory.target.model.load_target`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    asked = settings.model_fields_set & {"load_in_8bit", "load_in_4bit"}
    return load_target(
        name,
        device,
        dtype=settings.dtype,
        quantize=settings.quantize if asked or device.startswith("cuda") else None,
        trust_remote_code=settings.trust_remote_code and name == settings.target_model,
    )
