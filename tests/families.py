"""Tiny random models of every supported family, with a real tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from factory.target.loading import load_target
from factory.target.model import Target

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens, and a chat template that knows system messages."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=["<|start|>"]
    )
    fast.chat_template = TEMPLATE
    return fast


SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def family_configs() -> dict[str, PreTrainedConfig]:
    """A tiny configuration of each family, with what is particular to it."""
    return {
        "llama": LlamaConfig(**SIZES, head_dim=16),
        "llama-mha-tied": LlamaConfig(**SIZES | {"num_key_value_heads": 4}, tie_word_embeddings=True),
        "llama-yarn": LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        ),
        "qwen2": Qwen2Config(**SIZES),
        "qwen3": Qwen3Config(**SIZES, head_dim=16),
        "mistral": MistralConfig(**SIZES, sliding_window=None),
        "gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=2048),
        "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=2048),
        "stablelm": StableLmConfig(**SIZES, partial_rotary_factor=0.5),  # its attention cannot be replaced
        "cohere": CohereConfig(**SIZES),  # neighbours rotate
        "glm4": Glm4Config(**SIZES, head_dim=16, pad_token_id=0),  # neighbours rotate, in a part of each head
        "ernie4_5": Ernie4_5Config(**SIZES, head_dim=16),
        "smollm3": SmolLM3Config(**SIZES, pad_token_id=0),  # every fourth layer does not rotate
        "exaone4": Exaone4Config(**SIZES, sliding_window=2048, sliding_window_pattern=4),
        "llama4": Llama4TextConfig(  # complex angles
            **SIZES, head_dim=16, intermediate_size_mlp=64, num_local_experts=4, num_experts_per_tok=1
        ),
        "gpt-oss": GptOssConfig(  # attention of its own, with sinks
            **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=2048
        ),
        "falcon-mqa": FalconConfig(
            **SIZES | {"num_key_value_heads": 1}, multi_query=True, new_decoder_architecture=False
        ),
        "falcon-alibi": FalconConfig(
            **SIZES | {"num_key_value_heads": 4}, multi_query=False, alibi=True, num_kv_heads=4
        ),
        "gpt2": GPT2Config(vocab_size=260, n_embd=32, n_layer=5, n_head=4, n_positions=4096),
    }


def save_tiny_model(folder: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """Write a random model and its tokenizer; the weights are large enough that layers matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load_tiny_target(folder: Path, family: str = "llama", dtype: str = "float32") -> Target:
    """A tiny target of a family, on the CPU."""
    return load_target(str(save_tiny_model(folder, family_configs()[family])), "cpu", dtype=dtype)
