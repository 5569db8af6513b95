"""The connector's half in the scheduler: who is steered, and in which step the vector is added.

A steered request is read in two parts, as :mod:`factory.vllm.request` holds back its last token; in the
step that ends before that token, the workers are told what to add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from factory.log import log
from factory.serving.entry import RequestError
from factory.serving.library import VectorLibrary
from factory.vllm.asked import Asked, read_asked, settings_of
from factory.vllm.edit import Addition, Edit, first_edited, slots_of
from factory.vllm.model import ServedModel
from factory.vllm.request import SteeredRequest


@dataclass(frozen=True)
class StepPlan(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers do in one step: edits after the forward pass, and requests that they report as failed."""

    edits: tuple[Edit, ...] = ()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PagedPool:
    """The scheduler's cache: ``blocks_of`` gives a request's blocks, of ``block_size`` tokens.

    The prefix cache hashes every ``hash_size`` tokens.
    """

    blocks_of: Callable[[str], Sequence[int]]
    block_size: int
    hash_size: int


class Planner:
    """Follows the steered requests from their arrival to their end."""

    def __init__(self, model: ServedModel, library: VectorLibrary, neutral_id: int, longest: int) -> None:
        self.model = model
        self.library = library
        self.neutral_id = neutral_id
        self.longest = longest
        self.pool: PagedPool | None = None
        self.steered: dict[str, tuple[SteeredRequest, tuple[Addition, ...]]] = {}
        self.refused: set[str] = set()
        self.to_fail: set[str] = set()

    def admit(self, request: Any) -> None:
        """Take note of a new request: put the neutral token behind its prompt and make it a steered one.

        What cannot be followed is refused: the request fails, and the engine goes on.
        """
        try:
            asked = read_asked(request.kv_transfer_params)
            if asked is None:
                return
            settings = settings_of(asked.steering, self.library, self.model)
            self._check_prompt(request, asked)
        except Exception as error:  # what a client sends must not end the engine
            log.warning("request %s is refused: %s", request.request_id, error)
            self.refused.add(request.request_id)
            return
        if asked.neutral:
            append_to_prompt(request, self.neutral_id)
        if settings and self.pool is not None:
            additions = tuple(Addition.of(setting) for setting in settings)
            held_at = request.num_prompt_tokens - 1
            first = first_edited(held_at, additions)
            steered = SteeredRequest.adopt(request, held_at, first // self.pool.hash_size)
            self.steered[request.request_id] = (steered, additions)

    def _check_prompt(self, request: Any, asked: Asked) -> None:
        length = request.num_prompt_tokens + asked.neutral
        if request.prompt_token_ids is None or request.prompt_is_token_ids is not None or request.resumable:
            raise RequestError("steering needs a prompt of tokens, read in one go")
        if asked.neutral and getattr(request.sampling_params, "prompt_logprobs", None) is not None:
            raise RequestError("log probabilities of a prompt cannot be had with the neutral token behind it")
        if length < 2:
            raise RequestError("the prompt should have at least two tokens", "prompt")
        if length >= self.longest:
            raise RequestError(f"the prompt has {length} tokens, which leaves no room in {self.longest}", "prompt")

    def fails(self, request_id: str, n_external: int) -> None:
        """A refused request has been given blocks, as if a cache were loaded for it: have the workers fail it."""
        if n_external and request_id in self.refused:
            self.to_fail.add(request_id)

    def plan(self, output: Any) -> StepPlan:
        """What the workers do in the step that ``output`` (a ``SchedulerOutput``) describes."""
        for request_id in output.preempted_req_ids or ():
            if request_id in self.steered:
                self.steered[request_id][0].renew()
        edits = []
        for request_id, computed in _computed_before(output):
            if request_id in self.steered:
                steered, additions = self.steered[request_id]
                if computed < steered.held_at <= computed + output.num_scheduled_tokens[request_id]:
                    edits.append(self._edit(request_id, steered.held_at, additions))
        refused, self.to_fail = frozenset(self.to_fail), set()
        return StepPlan(tuple(edits), refused)

    def _edit(self, request_id: str, end: int, additions: tuple[Addition, ...]) -> Edit:
        if self.pool is None:
            raise RuntimeError("the cache manager was not bound before the first step")
        first = first_edited(end, additions)
        slots = slots_of(self.pool.blocks_of(request_id), self.pool.block_size, first, end)
        return Edit(additions, slots, end)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self.steered.pop(request_id, None)
        self.refused.discard(request_id)
        self.to_fail.discard(request_id)


def append_to_prompt(request: Any, token: int) -> None:
    """Put a token behind a request's prompt; the front end's own list of it stays as it is."""
    request.prompt_token_ids = [*request.prompt_token_ids, token]
    request._all_token_ids.append(token)
    request.num_prompt_tokens += 1
    request.update_block_hashes()


def _computed_before(output: Any) -> list[tuple[str, int]]:
    """How many tokens of each scheduled request were in the cache before the step."""
    cached = output.scheduled_cached_reqs
    new = [(request.req_id, request.num_computed_tokens) for request in output.scheduled_new_reqs]
    return [*new, *zip(cached.req_ids, cached.num_computed_tokens, strict=True)]
