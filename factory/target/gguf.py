"""GGUF files: what a header says that transformers does not read, so that it is refused and not lost."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from factory.errors import TargetError

NO_SCALING = ("", "none")


def check_gguf(path: Path, config: PreTrainedConfig) -> None:
    """Refuse a GGUF file whose rope scaling did not reach ``config``, or whose heads are of another size.

    Raises:
        TargetError: says which.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    header = {name.partition(".")[2]: field for name, field in reader.fields.items()}
    kind = header.get("rope.scaling.type")
    scaling = str(kind.contents()) if kind is not None else ""
    learned = any(tensor.name.startswith("rope_f") for tensor in reader.tensors)
    text = config.get_text_config()
    known = str((getattr(text, "rope_parameters", None) or {}).get("rope_type", "default"))
    if (scaling not in NO_SCALING or learned) and known == "default":
        raise TargetError(
            f"{path}: its rope scaling ({scaling or 'a factor for each frequency'}) is not read from a GGUF file, "
            "so that every position would be wrong. Use the model's folder of safetensors"
        )
    size = header.get("attention.key_length")
    heads = int(text.num_attention_heads)
    expected = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    if size is not None and int(size.contents()) != expected:
        raise TargetError(
            f"{path}: its heads have {int(size.contents())} numbers, which is not read from a GGUF file (expected "
            f"{expected}). Use the model's folder of safetensors"
        )
