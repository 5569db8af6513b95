"""The model that vLLM serves, by its configuration: whether a vector is for it, and whether keys can be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.errors import VectorError
from factory.serving.library import VectorLibrary
from factory.target.revision import folder_revision, is_same_model
from factory.vector.fit import check_fits
from factory.vector.setting import Setting
from factory.vector.vector import SteeringVector

VECTORS = "vectors"  # the entry of kv_connector_extra_config that names files, folders or URLs
KEYS = "keys"  # the entry that, false, offers values alone
ROPES = ("default", "linear", "llama3", "yarn")  # kinds of rotary embedding that vLLM applies in one and the same way
KEYS_REFUSED = "none"  # how a vector's file begins to say that it has no keys


@dataclass(frozen=True)
class ServedModel:
    """A model as its configuration describes it; its first name is the one that clients use.

    ``keys_refusal`` says why keys cannot be added; values can.
    """

    names: tuple[str, ...]
    revision: str
    shape: tuple[int, int]
    n_layers: int
    keys_refusal: str | None = None

    @classmethod
    def of(cls, config: Any) -> ServedModel:
        """The model of a ``VllmConfig``."""
        model = config.model_config
        served = model.served_model_name
        names = [served] if isinstance(served, str) else list(served or ())
        folder = Path(model.model).expanduser()
        commit = str(getattr(model.hf_config, "_commit_hash", None) or "unknown")
        return cls(
            names=tuple(dict.fromkeys([*names, model.model])),
            revision=folder_revision(folder) if folder.is_dir() else commit,
            shape=(int(model.get_total_num_kv_heads()), int(model.get_head_size())),
            n_layers=int(model.get_total_num_hidden_layers()),
            keys_refusal=None if extra_config(config).get(KEYS, True) else "they are turned off at this server",
        )._with_rotation_of(model.hf_text_config)

    def _with_rotation_of(self, text_config: Any) -> ServedModel:
        return self if self.keys_refusal else replace(self, keys_refusal=keys_refusal(text_config))

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.names[0]

    def check(self, vector: SteeringVector) -> None:
        """Refuse a vector that was made for another model.

        Raises:
            VectorError: see :func:`check_fits`.
        """
        known = next((name for name in self.names if is_same_model(vector.model_name, name)), self.name)
        check_fits(vector, _Named(known, self.revision, self.shape, self.n_layers))

    def check_keys(self, setting: Setting) -> None:
        """Refuse keys where they cannot be turned to their position.

        Raises:
            VectorError: says why.
        """
        if not setting.key_strength:
            return
        said = str(setting.vector.extraction_config.get("keys", ""))
        reason = said.removeprefix(f"{KEYS_REFUSED}: ") if said.startswith(KEYS_REFUSED) else self.keys_refusal
        if reason:
            raise VectorError(
                f"vector {setting.vector.style_name!r} has no keys that could be added to {self.name}: {reason}. "
                "Use key_strength 0: its values steer"
            )


@dataclass(frozen=True)
class _Named:
    """A model under the one of its names that a vector knows."""

    name: str
    revision: str
    shape: tuple[int, int]
    n_layers: int


def keys_refusal(text_config: Any) -> str | None:
    """Why the keys of a model cannot be turned to their position by one rotation for all layers, if so."""
    kinds: Sequence[str] = getattr(text_config, "layer_types", None) or ()
    turned: Sequence[int] = getattr(text_config, "no_rope_layers", None) or ()  # of each layer, whether it turns keys
    rope: Mapping[str, object] = getattr(text_config, "rope_parameters", None) or {}
    if len(set(kinds)) > 1 or any(isinstance(value, dict) for value in rope.values()):
        return "its layers are of several kinds, which may turn keys differently"
    if not all(turned):
        return "some of its layers do not turn keys"
    if rope.get("rope_type", "default") not in ROPES or "mrope_section" in rope:
        return f"its rotary embedding ({rope.get('rope_type')}) is of a kind of its own"
    return None


def extra_config(config: Any) -> dict[str, Any]:
    """The connector's own settings in a ``VllmConfig``."""
    return dict(config.kv_transfer_config.kv_connector_extra_config)


def open_library(config: Any, model: ServedModel) -> VectorLibrary:
    """The vectors that ``kv_connector_extra_config`` names.

    Raises:
        VectorError: it names none, or they cannot be read.
    """
    named = extra_config(config).get(VECTORS)
    sources = [named] if isinstance(named, str) else list(named or ())
    if not sources:
        raise VectorError(
            f"kv_connector_extra_config should have {VECTORS!r}: a folder or file of vectors, or a list of them"
        )
    return VectorLibrary([str(source) for source in sources], model.check)
