"""A request of vLLM's scheduler whose prompt is read in two parts, and whose edited blocks are its own."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, cast

from vllm.v1.request import Request


class SteeredRequest(Request):  # type: ignore[misc]
    """A request that seems to end before its last prompt token until all before it is in the cache.

    So the scheduler, whatever it does otherwise (chunks, preemption, prefix caching), makes a step that
    ends at ``held_at``: there the vector is added, and the next step reads the last prompt token. A
    preempted request begins anew, and is held and edited anew.

    Block hashes from ``private_from`` on are mixed with a number of the request's own, so that an edited
    block, or one that was read after it, is never found by another request.
    """

    held_at: int
    private_from: int
    _secret: bytes

    @classmethod
    def adopt(cls, request: Any, held_at: int, private_from: int) -> SteeredRequest:
        """Make a waiting request a steered one; the scheduler's queues keep the same object."""
        request.__class__ = cls
        steered = cast(SteeredRequest, request)
        steered.held_at = held_at
        steered.private_from = private_from
        steered.renew()
        return steered

    def renew(self) -> None:
        """Take another number of its own: blocks that it had cached are not found again, not even by itself."""
        self._secret = secrets.token_bytes(16)
        del self.block_hashes[self.private_from :]
        self.update_block_hashes()

    @property
    def _is_held(self) -> bool:
        return bool(self.num_computed_tokens < self.held_at)

    @property
    def num_tokens(self) -> int:
        """Tokens to read for now."""
        return self.held_at if self._is_held else len(self._all_token_ids)

    @property
    def num_tokens_with_spec(self) -> int:
        """Tokens to read for now, with those that a drafter guessed."""
        return self.held_at if self._is_held else len(self._all_token_ids) + len(self.spec_token_ids)

    def update_block_hashes(self) -> None:
        """Hash the full blocks that are not hashed yet, whether held or not."""
        known = len(self.block_hashes)
        held_at, self.held_at = self.held_at, 0
        try:
            super().update_block_hashes()
        finally:
            self.held_at = held_at
        for index in range(max(known, self.private_from), len(self.block_hashes)):
            self.block_hashes[index] = hashlib.sha256(self._secret + self.block_hashes[index]).digest()
