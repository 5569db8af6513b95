"""Loading the target model: from a hub id, a local folder, a GGUF file or the built-in name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from factory.errors import TargetError
from factory.log import log
from factory.target.anatomy import find_anatomy
from factory.target.chat import add_template_of_its_own
from factory.target.download import BUILT_IN, built_in_folder, require_model
from factory.target.gguf import check_gguf
from factory.target.model import Target
from factory.target.revision import folder_revision, revision_of
from factory.target.support import check_cache_support

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin


def choose_device(device: str) -> str:
    """``auto`` becomes cuda, then mps, then cpu; anything else is taken as it is.

    Raises:
        TargetError: the device asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if not present.get(device.split(":", maxsplit=1)[0], False):
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise TargetError(f"device {device!r} is not available here; found {there}. Use device: auto")
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere.

    float16 is refused: attention overflows in it on Qwen2 models.

    Raises:
        TargetError: another dtype was asked for.
    """
    chosen = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if chosen not in ("bfloat16", "float32"):
        raise TargetError(f"dtype {dtype!r} is not supported: choose auto, float32 or bfloat16")
    return torch.bfloat16 if chosen == "bfloat16" else torch.float32


def load_target(
    name: str,
    device: str = "auto",
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    trust_remote_code: bool = False,
    depth: int | None = None,
) -> Target:
    """Load a target model: a hub id, a folder, a ``.gguf`` file, or ``smollm2-135m-instruct``.

    ``quantize`` is ``"8bit"`` or ``"4bit"`` (bitsandbytes, CUDA only; elsewhere ignored with a
    warning). ``depth`` loads that many layers, from the first on: enough to read those, too few to
    answer. The model is put on the device, frozen, in inference mode.

    Raises:
        TargetError: the model cannot be found or loaded, or has no KV cache to steer.
    """
    require_model(name)
    place = choose_device(device)
    options: LoadOptions = {
        "dtype": choose_dtype(dtype, place),
        "trust_remote_code": trust_remote_code,
        "attn_implementation": "sdpa",
    }
    options.update(_quantization(quantize, place))
    source, revision, files = _locate(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **files)
        check_cache_support(config, name)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **files)
        add_template_of_its_own(tokenizer, source)
        if files:
            check_gguf(Path(source) / files["gguf_file"], config)
            options["gguf_file"] = files["gguf_file"]
        elif depth is not None and depth < config.get_text_config().num_hidden_layers:
            config.get_text_config().num_hidden_layers = depth
            options["config"] = config
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            options["attn_implementation"] = "eager"  # sdpa has no soft cap (Gemma 2)
        with _quiet_about_layers_left_out("config" in options):
            model = _load_model(source, options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TargetError(
            f"target model {name!r} cannot be loaded: {reason}. Expected a hub id, a folder, a .gguf file "
            f"or {BUILT_IN!r}; 'svf download' fetches a model beforehand."
        ) from None
    if quantize is None or not place.startswith("cuda"):
        model = model.to(place)
    model = model.eval().requires_grad_(False)
    _keep_a_cache(model)
    return Target(name, revision or _hub_commit(model), model, tokenizer, find_anatomy(model, name))


def _keep_a_cache(model: Any) -> None:
    """Let ``generate`` use the cache that it is given, whatever the checkpoint says.

    A model that was fine-tuned with gradient checkpointing is often saved with ``use_cache: false``; MPT
    comes so. Given a cache all the same, ``generate`` would read the whole prompt into it once more.
    """
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            config.use_cache = True


class LoadOptions(TypedDict, total=False):
    """What transformers is told when it loads a model."""

    dtype: torch.dtype
    trust_remote_code: bool
    attn_implementation: str
    config: PreTrainedConfig
    gguf_file: str
    quantization_config: QuantizationConfigMixin
    device_map: dict[str, str]


def _load_model(source: str, options: LoadOptions) -> Any:
    """The model with torch's fused attention, or with its own where it has no other (gpt-oss, GPT-J, BLOOM)."""
    try:
        return AutoModelForCausalLM.from_pretrained(source, **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    options["attn_implementation"] = "eager"
    return AutoModelForCausalLM.from_pretrained(source, **options)


@contextmanager
def _quiet_about_layers_left_out(are_left_out: bool) -> Iterator[None]:
    """Keep transformers from reporting every weight of the layers that are left out."""
    logger = logging.getLogger("transformers")
    usual = logger.level
    if are_left_out:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(usual)


def _quantization(quantize: str | None, device: str) -> LoadOptions:
    if quantize is None:
        return {}
    if not device.startswith("cuda"):
        log.warning("load_in_%s needs CUDA; on %s the model is loaded in full precision", quantize, device)
        return {}
    from transformers import BitsAndBytesConfig  # needs the [gpu] extra, which only this path has

    config = BitsAndBytesConfig(load_in_8bit=quantize == "8bit", load_in_4bit=quantize == "4bit")
    return {"quantization_config": config, "device_map": {"": device}}


def _locate(name: str) -> tuple[str, str | None, dict[str, str]]:
    """Where to load from, the revision if it can be told beforehand, and extra loading arguments."""
    if name == BUILT_IN:
        folder = built_in_folder()
        return str(folder), folder_revision(folder), {}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise TargetError(f"target model {name!r} does not exist")
        return str(path.parent), revision_of([path]), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), folder_revision(path), {}
    return name, None, {}


def _hub_commit(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_commit_hash", None) or "unknown")
