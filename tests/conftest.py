"""Parts that many tests share: a tiny target model, a private broker, and the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from factory.cluster.embedded import running_broker
from factory.pairs.dataset import load_pairs
from factory.pairs.pair import ContrastivePair
from factory.store import Store
from tests.s3 import running_s3

ROOT = Path(__file__).parents[1]
hypothesis.settings.register_profile("factory", max_examples=50, deadline=None)  # machines are shared: no time limits
hypothesis.settings.load_profile("factory")
STYLES = ("creative_explorer", "researcher_style", "step_by_step_reasoning")
MEANS = {"learning": {"rounds": 0}}  # settings of a run whose subject is not learning: its vectors stay means
MEANS_BY_VARIABLE = {"FACTORY_LEARNING__ROUNDS": "0"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """What the machine's user has set must not decide a test."""
    for name in list(os.environ):
        if (name.startswith("FACTORY_") and name != "FACTORY_CACHE_DIR") or name == "OPENAI_API_KEY":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_programs():
    """A shell makes what it starts with ``&`` deaf to Ctrl-C, and so all that this starts: not here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def starter_pairs() -> list[ContrastivePair]:
    """The pairs of one starter dataset."""
    return load_pairs(ROOT / "datasets" / "step_by_step_reasoning_pairs.jsonl")


def make_tokenizer(texts: Sequence[str]):
    """A byte-level BPE tokenizer trained on ``texts``, with a chat template: any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=specials[1:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_model(
    folder: Path, texts: Sequence[str], *, family: str = "llama", n_layers: int = 4, seed: int = 0
) -> Path:
    """Save a random model of ``family`` (llama or qwen2) and a real tokenizer to ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(texts)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    config, model = (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Qwen2Config, Qwen2ForCausalLM)
    model(config(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory, starter_pairs) -> Path:
    """A folder with a tiny random Llama and a real tokenizer: as a target model's name, its path."""
    texts = [text for pair in starter_pairs for text in (pair.positive_response, pair.negative_response)]
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", texts)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory, starter_pairs) -> Path:
    """The same with a Qwen2, the architecture of the default target model."""
    texts = [text for pair in starter_pairs for text in (pair.positive_response, pair.negative_response)]
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen2", texts, family="qwen2", n_layers=3)


@pytest.fixture(scope="session")
def target(target_folder):
    """The tiny Llama, loaded."""
    from factory.target.loading import load_target

    return load_target(str(target_folder), "cpu")


@pytest.fixture(scope="session")
def qwen_target(qwen_folder):
    """The tiny Qwen2, loaded."""
    from factory.target.loading import load_target

    return load_target(str(qwen_folder), "cpu")


@pytest.fixture(scope="session")
def broker(tmp_path_factory) -> Iterator[str]:
    """The URL of a private Valkey that lives as long as the tests."""
    with running_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store in a folder."""
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A real S3 server with a bucket ``factory``: its address and keys as environment variables."""
    with running_s3() as environment:
        yield environment


@dataclass(frozen=True)
class Said:
    """What ``svf`` said and how it ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def svf(tmp_path) -> Callable[..., Said]:
    """Run ``svf`` as a person does, in a process of its own, in an empty folder."""

    def run(*words: object, cwd: Path = tmp_path, timeout: float = 240, **environment: str) -> Said:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FACTORY_") or name == "FACTORY_CACHE_DIR"
        }
        clean.pop("OPENAI_API_KEY", None)
        ended = subprocess.run(
            [sys.executable, "-c", "from factory.cli import main; main()", *map(str, words)],
            cwd=cwd,
            env=clean | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Said(ended.returncode, ended.stdout, ended.stderr)

    return run
