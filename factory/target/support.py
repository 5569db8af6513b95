"""Whether a model's cache can be read at all, as its configuration alone tells.

Asked twice: of ``config.json`` before anything is paid, and of the configuration of a model that is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from factory.errors import TargetError
from factory.target.download import read_language_part

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Field = Callable[[str], object]  # what a configuration says under a name; None where it does not


def check_support(name: str) -> None:
    """Refuse, without loading it, a target model whose configuration on this machine rules out a vector.

    Raises:
        TargetError: names what the configuration says and what to choose.
    """
    field = (read_language_part(name) or {}).get
    _refuse(name, why_unreadable(field) or why_uneven(field))


def check_cache_support(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model that is being loaded if its layers do not all keep keys and values of every token.

    Their shapes are not judged by the configuration here: loading measures them.

    Raises:
        TargetError: names what the configuration says and what to choose.
    """
    text = config.get_text_config()
    _refuse(name, why_unreadable(lambda field: getattr(text, field, None)))


def _refuse(name: str, reason: str | None) -> None:
    if reason:
        raise TargetError(f"{name}: {reason}. Choose a model whose layers all keep keys and values of one shape.")


def why_unreadable(field: Field) -> str | None:
    """What in a configuration says that some layers keep no keys and values of their own; None where nothing does."""
    listed = field("layer_types")
    kinds = [str(kind) for kind in listed] if isinstance(listed, list | tuple) else []
    odd = {kind for kind in kinds if "attention" not in kind or "linear" in kind}
    if odd:
        return f"layers of type {', '.join(sorted(odd))} keep no keys and values, so there is nothing to steer"
    return "layers share their KV cache, which is not supported" if field("num_kv_shared_layers") else None


def why_uneven(field: Field) -> str | None:
    """What in a configuration says that keys and values differ in shape; None where nothing does."""
    rope, plain, value = map(partial(_width, field), ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    if field("kv_lora_rank") and rope and plain and value and rope + plain != value:
        return f"it has latent attention, whose keys ({rope + plain} wide) and values ({value}) differ in shape"
    wide, usual = field("global_head_dim"), field("head_dim")
    if wide and usual and wide != usual:
        return f"its layers keep keys and values of different widths ({usual} and {wide})"
    return None


def _width(field: Field, name: str) -> int | None:
    found = field(name)
    return found if isinstance(found, int) else None
