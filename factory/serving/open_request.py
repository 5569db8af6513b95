"""A request while the engine makes its answers: what the engine's thread says is heard on the event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping

from fastapi import Request

from factory.errors import FactoryError
from factory.serving.engine import Failed, Generation, Piece
from factory.serving.entry import error_body
from factory.serving.figures import Figures
from factory.serving.reply import AnswerSoFar, ReplyWriter, as_json
from factory.serving.row import Sampling
from factory.vector.setting import Setting


class EngineFailed(FactoryError):
    """The engine could not make an answer."""


class OpenRequest:
    """One request at the engine: what the engine's thread says is heard on the event loop."""

    def __init__(
        self,
        figures: Figures,
        label: str,
        *,
        prompt: list[int],
        steering: tuple[Setting, ...],
        sampling: Sampling,
        n_answers: int,
    ) -> None:
        self.figures, self.label = figures, label
        self.answers = [AnswerSoFar() for _ in range(n_answers)]
        self.heard: asyncio.Queue[Piece | Failed] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.job = Generation(prompt, steering, sampling, self._listen, n_answers)
        self.is_first = True

    def _listen(self, piece: Piece | Failed) -> None:
        self.loop.call_soon_threadsafe(self.heard.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Piece]:
        """What the engine says, until every answer has ended; leaving early frees the rows."""
        try:
            while not all(answer.reason for answer in self.answers):
                piece = await self.heard.get()
                if isinstance(piece, Failed):
                    raise EngineFailed(piece.message)
                self._count(piece)
                yield piece
        finally:
            self.job.cancel()
            made = sum(answer.n_tokens for answer in self.answers)
            self.figures.prompt_tokens.labels(self.label).inc(len(self.job.prompt))
            self.figures.answer_tokens.labels(self.label).inc(made)

    def _count(self, piece: Piece) -> None:
        if self.is_first:
            self.figures.first_token.labels(self.label).observe(time.monotonic() - self.job.asked_at)
            self.is_first = False
        answer = self.answers[piece.index]
        answer.text += piece.text
        answer.reason, answer.n_tokens = piece.reason, piece.n_tokens

    async def finish(self, request: Request) -> bool:
        """Wait for every answer; False where the client left before."""
        making = asyncio.ensure_future(self._drain())
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
                return True
            return False
        finally:
            self.job.cancel()
            making.cancel()
            leaving.cancel()

    async def _drain(self) -> None:
        async for _ in self.pieces():
            pass

    async def events(self, reply: ReplyWriter, *, with_usage: bool) -> AsyncIterator[str]:
        """The stream's events; an error after the first byte is an event too."""
        pieces = self.pieces()
        try:
            for index in range(len(self.answers)):
                opening = reply.first(index)
                if opening:
                    yield _event(as_json(opening))
            async for piece in pieces:
                if piece.text or piece.reason:
                    yield _event(as_json(reply.piece(piece.index, piece.text, piece.reason)))
            if with_usage:
                yield _event(as_json(reply.last(self.answers)))
            yield "data: [DONE]\n\n"
        except EngineFailed as error:
            yield _event(error_body(str(error), "server_error"))
        finally:
            self.job.cancel()
            await pieces.aclose()  # type: ignore[attr-defined]


def _event(content: Mapping[str, object]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
