"""Continuous batching: requests with different vectors are answered in one batch, and join between tokens.

One thread owns the model. Each prompt is read alone and steered (what :func:`steered_cache` does); its
cache then becomes a row of the batch. Decoding knows nothing of vectors, so every mix runs at one speed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from factory.errors import ServingError
from factory.log import log
from factory.serving.row import Choice, Row, Sampling, Text, end_ids
from factory.target.model import Target
from factory.target.rows import RowCache
from factory.vector.fit import check_fits
from factory.vector.setting import Setting
from factory.vector.steer import add_vector, positions_of, steered_cache

PREFILL_TOKENS = 512  # read between two tokens of the others, at least one prompt

Reason = Literal["stop", "length"]


class Busy(ServingError):
    """The queue is full, or the server is about to end: come back later."""


@dataclass(frozen=True)
class Piece:
    """What happened to answer ``index`` of a job: more text, and at its end the reason."""

    index: int
    text: str
    reason: Reason | None = None
    n_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """A job ended without an answer."""

    message: str


@dataclass(eq=False)
class Generation:
    """A request of the engine: ``prompt`` ends with the token from which generation starts.

    ``listen`` is called on the engine's thread; it must not block. ``n`` answers are made of one prefill.
    """

    prompt: list[int]
    steering: tuple[Setting, ...]
    sampling: Sampling
    listen: Callable[[Piece | Failed], None]
    n: int = 1
    is_cancelled: bool = False
    asked_at: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """Free the job's rows at the next token."""
        self.is_cancelled = True


class Engine:
    """Answers jobs; use it as a context, or call :meth:`start` and :meth:`close`."""

    def __init__(self, target: Target, *, max_batch: int, max_queue: int) -> None:
        self.target = target
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.end_ids = end_ids(target)
        self.cache = RowCache(target, max_batch)
        self.rows: list[Row] = []
        self.waiting: deque[Generation] = deque()
        self.changed = threading.Condition()
        self.is_closing = False
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread that owns the model."""
        self.thread.start()

    def close(self) -> None:
        """Take nothing new, finish what is under way, end the thread."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread answers."""
        return self.thread.is_alive() and not self.is_closing

    def submit(self, job: Generation) -> None:
        """Queue a job.

        Raises:
            VectorError: a vector is for another model.
            Busy: the queue is full, or the engine is closing.
        """
        for steering in job.steering:
            check_fits(steering.vector, self.target)
        with self.changed:
            if self.is_closing:
                raise Busy("the server is about to end")
            waiting = [other for other in self.waiting if not other.is_cancelled]
            if len(waiting) >= self.max_queue:
                raise Busy(f"{len(waiting)} requests wait already, which is the most this server queues")
            self.waiting.append(job)
            self.changed.notify()

    # ---- on the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self.changed:
                    while not (self.waiting or self.rows or self.is_closing):
                        self.changed.wait()
                    if self.is_closing and not (self.waiting or self.rows):
                        return
                try:
                    self._step()
                except Exception as error:  # a server outlives one bad step, and says so to those concerned
                    log.exception("a step of the engine failed")
                    self._fail_all(error)

    def _step(self) -> None:
        """Drop who left, let who waits join, and make one token for each row."""
        self._keep([not row.job.is_cancelled for row in self.rows])
        self._admit()
        if self.rows:
            self._decode()

    def _admit(self) -> None:
        budget = PREFILL_TOKENS
        while budget > 0:
            with self.changed:
                while self.waiting and self.waiting[0].is_cancelled:
                    self.waiting.popleft()
                if not self.waiting or len(self.rows) + self.waiting[0].n > self.max_batch:
                    return
                job = self.waiting.popleft()
            budget -= len(job.prompt)
            try:
                self._prefill(job)
            except Exception as error:
                log.exception("a prompt could not be read")
                job.listen(Failed(f"{type(error).__name__} while the prompt was read"))

    def _prefill(self, job: Generation) -> None:
        ids = self.target.tensor([job.prompt])  # [1, length]
        mask = torch.ones_like(ids)
        cache = steered_cache(self.target, ids, mask, None)
        for steering in job.steering:
            add_vector(self.target, cache, positions_of(mask)[:, :-1], steering)
        self.cache.add(cache, job.n)
        for index in range(job.n):
            choice = Choice(self.target, job.prompt, job.sampling, index)
            self.rows.append(Row(job, index, choice, Text(self.target, job.sampling.stop), job.prompt[-1]))

    def _decode(self) -> None:
        logits = self.cache.next_logits([row.pending for row in self.rows])
        self._keep([self._take(row, logits[at]) for at, row in enumerate(self.rows)])

    def _take(self, row: Row, logits: torch.Tensor) -> bool:
        """Choose the row's next token and tell of it; returns whether the row goes on."""
        row.pending = row.choice.next_token(logits)
        row.n_tokens += 1
        text, reason = row.text.add(row.pending), self._reason(row)
        if reason:
            text += row.text.finish()
            if row.text.is_stopped:
                reason = "stop"
        row.job.listen(Piece(row.index, text, reason, row.n_tokens))
        return reason is None

    def _reason(self, row: Row) -> Reason | None:
        if row.pending in self.end_ids or row.text.is_stopped:
            return "stop"
        return "length" if row.n_tokens >= row.job.sampling.max_tokens else None

    def _keep(self, stay: list[bool]) -> None:
        kept = [at for at, stays in enumerate(stay) if stays]
        self.cache.keep(kept)
        self.rows = [self.rows[at] for at in kept]

    def _fail_all(self, error: Exception) -> None:
        jobs = {id(row.job): row.job for row in self.rows}
        self.rows, self.cache = [], RowCache(self.target, self.max_batch)
        for job in jobs.values():
            job.listen(Failed(f"{type(error).__name__} while the answer was made"))
