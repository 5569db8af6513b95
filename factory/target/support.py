"""Whether a model's cache can be read at all, as its configuration alone tells: asked before anything is paid."""

from __future__ import annotations

from collections.abc import Mapping

from factory.errors import TargetError
from factory.target.download import read_language_part


def check_support(name: str) -> None:
    """Refuse, without loading it, a target model whose configuration on this machine rules out a vector.

    Loading probes the model itself and may refuse more.

    Raises:
        TargetError: names what the configuration says and what to choose.
    """
    reason = why_unsupported(read_language_part(name) or {})
    if reason:
        raise TargetError(f"{name}: {reason}. Choose a model whose layers all keep keys and values of one shape.")


def why_unsupported(config: Mapping[str, object]) -> str | None:
    """What in the ``config.json`` of a language part rules out a vector; None where nothing does."""
    listed = config.get("layer_types")
    kinds = [str(kind) for kind in listed] if isinstance(listed, list) else []
    odd = {kind for kind in kinds if "attention" not in kind or "linear" in kind}
    if odd:
        return f"layers of type {', '.join(sorted(odd))} keep no keys and values, so there is nothing to steer"
    if config.get("num_kv_shared_layers"):
        return "layers share their KV cache, which is not supported"
    rope, plain, value = (_width(config, name) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    if config.get("kv_lora_rank") and rope and plain and value and rope + plain != value:
        return f"it has latent attention, whose keys ({rope + plain} wide) and values ({value}) differ in shape"
    wide, usual = config.get("global_head_dim"), config.get("head_dim")
    if wide and usual and wide != usual:
        return f"its layers keep keys and values of different widths ({usual} and {wide})"
    return None


def _width(config: Mapping[str, object], name: str) -> int | None:
    found = config.get(name)
    return found if isinstance(found, int) else None
