"""The target model: the frozen model that is read and steered, and how it takes conversations as token ids.

This module does not know pairs, recipes or vectors.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from factory.errors import TargetError
from factory.files import sha256_of, today
from factory.target.anatomy import Anatomy, answers_behind_padding
from factory.target.chat import Chat, Message
from factory.target.kv import reading_limits
from factory.target.rotation import Rotation

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Target:
    """A loaded target model with its tokenizer.

    ``revision`` names the exact weights: a hub commit, or the hash of the local files. ``date`` is the
    day that chat templates write where they write one. ``lock`` is held while the model runs: extraction
    replaces parts of it, so that two threads take turns.
    """

    name: str
    revision: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    anatomy: Anatomy
    date: str = field(default_factory=today)
    lock: AbstractContextManager[Any] = field(default_factory=threading.RLock, compare=False, repr=False)

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer with its chat template, on the target's day."""
        return Chat(self.tokenizer, self.date)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """The numbers it computes in, such as ``float32`` or ``bfloat16+int8``."""
        text = str(self.model.dtype).removeprefix("torch.")
        if getattr(self.model, "is_loaded_in_8bit", False):
            return f"{text}+int8"
        return f"{text}+int4" if getattr(self.model, "is_loaded_in_4bit", False) else text

    @property
    def n_layers(self) -> int:
        """How many transformer layers the model has."""
        return int(self._text_config.num_hidden_layers)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one layer's states of one token: ``(n_kv_heads, head_dim)``."""
        return self.anatomy.shape

    @property
    def rotation(self) -> Rotation:
        """How the model turns keys by their position."""
        return self.anatomy.rotation

    @property
    def longest_text(self) -> int:
        """How many tokens the model can read with every layer seeing all of them."""
        return min(reading_limits(self.model.config).values(), default=2**31)

    @property
    def limited_by(self) -> str:
        """What of the model sets :attr:`longest_text`, in words."""
        limits = reading_limits(self.model.config)
        return min(limits, key=lambda why: limits[why], default="nothing")

    @cached_property
    def can_pad(self) -> bool:
        """Whether texts of different length can be answered together, the shorter ones behind padding."""
        with self.lock:
            return answers_behind_padding(self.model)

    def peak_memory_mib(self) -> float:
        """The most memory that this process has used so far: on the GPU if the model is there, else its own.

        0 where the system does not tell (Windows).
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            import resource
        except ImportError:  # Unix alone has it
            return 0.0
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()

    @cached_property
    def neutral_id(self) -> int:
        """The token from which generation starts: a line break, as an id, so that it merges with nothing."""
        ids = self.tokenizer.encode("\n", add_special_tokens=False)
        if not ids:
            raise TargetError(f"{self.name}: its tokenizer has no token for a line break")
        return int(ids[-1])

    @cached_property
    def template_sha256(self) -> str:
        """Hash of the chat template, so that a vector says what text its model read."""
        return sha256_of(self.chat.template)

    def special_text_in(self, text: str) -> str | None:
        """The first piece of ``text`` that the tokenizer or template takes for a command, if any."""
        return self.chat.special_text_in(text)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the model is to answer.

        Raises:
            PairRejected: the chat template refuses the conversation.
        """
        return self.chat.prompt_ids(messages)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of bare text, without any special token."""
        return self.chat.text_ids(text)

    def response_ids(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and the indices of its last message's own tokens.

        Raises:
            PairRejected: the chat template refuses the conversation or alters the message.
        """
        return self.chat.response_ids(messages)

    def on(self, date: str) -> Target:
        """The same model, for texts of another day: templates may write it into every prompt."""
        return replace(self, date=date)

    def tensor(self, numbers: Any, dtype: torch.dtype = torch.long) -> Tensor:
        """``numbers`` as a tensor on the model's device."""
        return torch.tensor(numbers, dtype=dtype).to(self.device, non_blocking=True)
