"""Every causal language model class of the installed transformers, as a tiny random model, through three checks.

``python -m tests.target.census`` examines all and writes the table into docs/models.md;
``python -m tests.target.census llama glm4`` prints the rows of some.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from factory import ContrastivePair, Steering, SteeringVector, Target, build_vector, load_target
from factory.errors import TargetError, VectorError
from factory.vector.steer import as_messages, generate_batch, left_padded, steered_cache
from tests.families import save_tiny_model
from tests.oracle import naive_vector

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BLOCK = re.compile(r"(<!-- census -->\n)(.*?)(<!-- end -->)", re.DOTALL)
ORDER = ("equal", "refused", "not built", "wrong")
TINY = 20_000_000  # parameters
TOLERANCE = 2e-5
N_TOKENS = 8
PAIRS = [
    ContrastivePair(
        question=f"What is {n} plus {n}?",
        positive_response=f"Step 1: look at {n}. " * n + f"Step 2: say {n + n}.",
        negative_response=f"It is {n + n}" + ", as one finds quickly" * n + ".",
        style="steps",
    )
    for n in (1, 2)
]
ASKED = [as_messages("Why?"), as_messages("How does a longer question fare?")]

# A value for each name that a configuration may give to a size; what it does not name, it does not get.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "attention_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 1024),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "sliding_window": 512,
    "vocab_size": 260,
    "pad_token_id": 0,
    "bos_token_id": 257,
    "eos_token_id": 256,
    "is_decoder": True,  # BERT and its kin see what comes after, unless they are told
    "image_size": 28,
    "patch_size": 14,
}
# What a class needs besides.
LATENT = {"num_key_value_heads": 4}  # as many as there are queries: all come from one latent state
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA_4 = {"vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 8, "global_head_dim": 32}
PARTICULAR: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "dots3_note", "dots3_note_text"), LATENT),
    **dict.fromkeys(("bamba", "granitemoehybrid"), MAMBA),
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "helium": {"head_dim": 8},
    "dbrx": {"max_seq_len": 1024},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 512},
    "lfm2": {"layer_types": ["conv", FULL, "conv", FULL]},
    "lfm2_moe": {"layer_types": ["conv", FULL, "conv", FULL]},
    "modernbert-decoder": {"local_attention": 1024},
    "cohere_compass_text": {"layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
    "zaya": {"num_experts_per_tok": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 32, "zero_expert_num": 2, "moe_topk": 2, "head_dim": 8} | LATENT,
    "xlm": {"emb_dim": 32, "vocab_size": 260, "causal": True},
    "xmod": {"default_language": "en_XX"},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2},
    "kimi_linear": {"linear_head_dim": 16, "linear_num_heads": 4} | LATENT,
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "attention_head_size": 8},
    "gemma4_text": GEMMA_4,
    "gemma4": {"text_config": GEMMA_4},
    "gemma4_unified": {"text_config": GEMMA_4},
}


@dataclass(frozen=True)
class Row:
    """What became of one class; a check that found fault says so in words that begin with "wrong"."""

    model_type: str
    values: str
    keys: str
    zero: str

    @classmethod
    def of_all(cls, model_type: str, outcome: str) -> Row:
        """The same outcome for all three checks."""
        return cls(model_type, outcome, outcome, outcome)

    @property
    def is_wrong(self) -> bool:
        """Whether any check found fault."""
        return any(result.startswith("wrong") for result in (self.values, self.keys, self.zero))


def model_types() -> list[str]:
    """Every model type that ``AutoModelForCausalLM`` knows, by name."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The type's configuration with a small number wherever it has a size."""
    return _tiny(CONFIG_MAPPING[model_type], PARTICULAR.get(model_type, {}))


def _tiny(kind: type[PreTrainedConfig], particular: dict[str, Any]) -> PreTrainedConfig:
    names = inspect.signature(kind.__init__).parameters
    given = {name: value for name, value in SMALL.items() if name in names}
    usual = getattr(kind, "sub_configs_defaults", {})
    for name, declared in kind.sub_configs.items():
        model_type = getattr(usual.get(name), "model_type", None)
        inner = CONFIG_MAPPING[model_type] if model_type else declared
        if name in names and inner.__name__ != "AutoConfig":
            given[name] = _tiny(inner, particular.get(name, {})).to_dict()
    return kind(**given | {name: value for name, value in particular.items() if name not in kind.sub_configs})


def examine(model_type: str, folder: Path) -> Row:
    """Build a tiny model of ``model_type`` and put it through the three checks."""
    try:
        save_tiny(tiny_config(model_type), folder)
    except Exception as error:  # as many kinds as there are model classes
        return Row.of_all(model_type, f"not built: {_first_words(error)}")
    try:
        target = load_target(str(folder), "cpu", dtype="float32")
        return Row(model_type, *check_states(target), check_zero(target))
    except TargetError as refusal:
        return Row.of_all(model_type, f"refused: {str(refusal).removeprefix(f'{folder}: ')}")
    except Exception as error:
        return Row.of_all(model_type, f"wrong: {_first_words(error)}")


def save_tiny(config: PreTrainedConfig, folder: Path) -> None:
    """Write a random model of ``config``.

    Raises:
        ValueError: it would be large all the same, or its own ``generate`` fails.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > TINY:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    save_tiny_model(folder, config)
    config.save_pretrained(folder)  # of the whole, where the model is the language part of a larger one


def check_states(target: Target) -> tuple[str, str]:
    """Whether values, and keys where they are not refused, are those of a naive forward pass."""
    layers = list(range(target.n_layers))
    keys, values = naive_vector(PAIRS, target, layers, recipe="response_last")
    vector = build_vector(PAIRS, target, recipe="response_last", layers=layers)
    said = str(vector.extraction_config["keys"])
    equal = _equal(_apart(vector.value_vector, values))
    if target.anatomy.refusal:
        return equal, said if _are_keys_refused(target, vector) else "wrong: not refused"
    turned = _equal(_apart(vector.key_vector, keys))
    return equal, said if turned == "equal" else turned


def check_zero(target: Target) -> str:
    """Whether strength 0 gives the answers of plain ``generate``, one by one and in a batch; and 50 other logits."""
    vector = build_vector(PAIRS, target, recipe="response_last", layers="all")
    plain = [_plain_answer(target, messages) for messages in ASKED]
    none = Steering(vector, 0.0)
    zero = [generate_batch(target, [messages], steering=none, max_new_tokens=N_TOKENS)[0] for messages in ASKED]
    if zero != plain:
        return f"wrong: {zero} for {plain}"
    if generate_batch(target, ASKED, steering=none, max_new_tokens=N_TOKENS) != plain:
        return "wrong: other answers in a batch"
    apart = (_next_logits(target, Steering(vector, 50.0)) - _next_logits(target, none)).abs().max()
    return "equal" if apart > 1e-3 else "wrong: strength 50 changes nothing"


def _next_logits(target: Target, steering: Steering) -> torch.Tensor:
    """What may follow a prompt that was steered."""
    ids, mask = left_padded(target, [[*target.prompt_ids(ASKED[0]), target.neutral_id]])
    cache = steered_cache(target, ids, mask, steering)
    model: Any = target.model
    with torch.no_grad():
        output = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
    return torch.as_tensor(output.logits)


def _plain_answer(target: Target, messages: Any) -> str:
    """What the model's own ``generate`` answers, without a cache from us."""
    ids = target.tensor([[*target.prompt_ids(messages), target.neutral_id]])
    model: Any = target.model
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0
    )
    return str(target.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _are_keys_refused(target: Target, vector: SteeringVector) -> bool:
    try:
        generate_batch(target, ASKED[:1], steering=Steering(vector, 1.0, key_strength=1.0), max_new_tokens=1)
    except VectorError:
        return True
    return False


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def _equal(apart: float) -> str:
    return "equal" if apart <= TOLERANCE else f"wrong: {apart:.0e} off"


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def table(rows: Iterable[Row]) -> str:
    """The rows with one outcome in one line, those that work first."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        alike[_in_short(row.values), _in_short(row.keys), _in_short(row.zero)].append(row.model_type)
    lines = ["| values | keys | strength 0 | model types |", "|---|---|---|---|"]
    for outcome, names in sorted(
        alike.items(), key=lambda each: (ORDER.index(each[0][0].split(":")[0]), -len(each[1]))
    ):
        values, keys, zero = outcome
        cells = f"{values} | {keys} | {zero}" if values != keys else f"{values} | |"
        lines.append(f"| {cells} | {len(names)}: {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def _in_short(outcome: str) -> str:
    """An outcome without what differs from model to model, so that like stands with like."""
    if outcome.startswith("not built"):
        return "not built"
    short = re.sub(r"layers of type .* keep no", "layers that keep no", outcome)
    short = re.sub(
        r"\d+ layers keep keys and values of their own, expected all \d+", "layers without a cache of keys", short
    )
    short = re.sub(r" \((\d+ heads|[A-Za-z]+Error).*\)(?=[,.])", "", short)
    return re.split(r", so there|; a vector|\. Choose", short.replace("|", "\\|"))[0]


def document() -> str:
    """The table that stands in docs/models.md."""
    found = BLOCK.search(DOCUMENT.read_text(encoding="utf-8"))
    return found[2] if found else ""


def write(rows: Iterable[Row]) -> None:
    """Put the table into docs/models.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(BLOCK.sub(lambda block: block[1] + table(rows) + block[3], text), encoding="utf-8")


def main() -> None:
    """Examine all classes and write the table, or print the rows of those that are named."""
    transformers.logging.set_verbosity_error()
    rows = []
    for model_type in sys.argv[1:] or model_types():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(model_type, Path(folder)))
        print(*asdict(rows[-1]).values(), sep=" | ", flush=True)
    if not sys.argv[1:]:
        write(rows)


if __name__ == "__main__":
    main()
