"""The HTTP application: OpenAI's paths, the vectors, the page, health and figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypedDict

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from factory.log import log
from factory.serving.engine import Busy, Engine
from factory.serving.entry import RequestError, error_body
from factory.serving.figures import Figures
from factory.serving.guard import RequestGuard
from factory.serving.library import VectorLibrary
from factory.serving.open_request import OpenRequest
from factory.serving.reply import AnswerSoFar, ReplyWriter, as_json
from factory.serving.request import (
    DEFAULT_MAX_TOKENS,
    ChatRequest,
    CompletionRequest,
    steering_of,
)
from factory.target.model import Target
from factory.vector.setting import Setting

RETRY_AFTER_SECONDS = 2
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


@dataclass(frozen=True)
class RequestLimits:
    """What one request may take: bytes of its body, tokens of prompt and answer together."""

    max_body: int = 1 << 20
    max_context: int = 4096


class ListedVector(TypedDict):
    """A vector in ``GET /v1/vectors``: its layers, the strength recommended for it, and its style's markers."""

    name: str
    layers: list[int]
    strength: float
    markers: list[str]


@dataclass
class Server:
    """Everything that a request needs."""

    target: Target
    library: VectorLibrary
    engine: Engine
    limits: RequestLimits
    markers_of: Callable[[str], Sequence[str]]
    figures: Figures = field(default_factory=Figures)
    started_at: int = field(default_factory=lambda: int(time.time()))

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._answer(request, ChatRequest)

    async def complete(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._answer(request, CompletionRequest)

    async def models(self) -> JSONResponse:
        """The bare model, and ``MODEL:STYLE`` for each vector."""
        await asyncio.to_thread(self.library.refresh)
        names = [self.target.name, *(f"{self.target.name}:{name}" for name in self.library.vectors)]
        models = [Model(id=name, created=self.started_at, object="model", owned_by="svf") for name in names]
        return JSONResponse({"object": "list", "data": [model.model_dump() for model in models]})

    async def vectors(self) -> JSONResponse:
        """The vectors with what is recommended for them, and those that were refused."""
        await asyncio.to_thread(self.library.refresh)
        return JSONResponse({"data": self._described(), "refused": self.library.refused})

    async def reload(self) -> JSONResponse:
        """Look for vectors now."""
        await asyncio.to_thread(self.library.reload)
        return JSONResponse({"data": self._described(), "refused": self.library.refused})

    async def health(self) -> JSONResponse:
        """Whether the engine answers."""
        well = self.engine.is_alive
        return JSONResponse({"status": "ok" if well else "ending"}, 200 if well else 503)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        self.figures.batch.set(len(self.engine.rows))
        self.figures.queue.set(len(self.engine.waiting))
        return Response(generate_latest(self.figures.registry), media_type=CONTENT_TYPE_LATEST)

    def _described(self) -> list[ListedVector]:
        return [
            ListedVector(
                name=name,
                layers=vector.layer_indices,
                strength=Setting.recommended(vector).strength,
                markers=list(self.markers_of(vector.style_name)),
            )
            for name, vector in self.library.vectors.items()
        ]

    # ---- one request

    async def _answer(self, request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Response:
        label, status, answers, n_prompt = "none", 500, list[AnswerSoFar](), 0
        started = time.monotonic()
        try:
            asked = _parse(await request.body(), kind)
            await asyncio.to_thread(self.library.refresh)
            named = steering_of(asked, self.library, self.target)
            label = "none" if not named else named[0][0] if len({name for name, _ in named}) == 1 else "several"
            prompt = await asyncio.to_thread(asked.prompt, self.target)
            asking = self._asking(asked, prompt, tuple(steering for _, steering in named), label)
            answers, n_prompt = asking.answers, len(asking.job.prompt)
            self.engine.submit(asking.job)
            reply = ReplyWriter(asked.model, n_prompt, isinstance(asked, ChatRequest))
            if asked.stream:
                status = 200
                with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
                events = asking.events(reply, with_usage=with_usage)
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            if not await asking.finish(request):
                status = 499  # the client left: nobody reads this
                return Response(status_code=status)
            status = 200
            return JSONResponse(as_json(reply.whole(answers)))
        except Exception as error:
            response = _as_response(error)
            status = response.status_code
            return response
        finally:
            self.figures.requests.labels(label, str(status)).inc()
            log.info(
                "%s %d vector=%s prompt=%d %.2fs", request.url.path, status, label, n_prompt, time.monotonic() - started
            )

    def _asking(
        self,
        asked: ChatRequest | CompletionRequest,
        prompt: list[int],
        steering: tuple[Setting, ...],
        label: str,
    ) -> OpenRequest:
        room = self.limits.max_context - len(prompt)
        limit = asked.limit()
        if room < 1 or (limit or 1) > room:
            raise RequestError(
                f"prompt ({len(prompt)} tokens) and answer ({limit or 1}) exceed the {self.limits.max_context} tokens "
                "that this server takes",
                "messages",
                "context_length_exceeded",
            )
        n_answers = asked.n or 1
        if n_answers > self.engine.max_batch:
            raise RequestError(f"n is at most {self.engine.max_batch} here", "n")
        longest = max((one.n_positions for one in steering), default=0)
        if longest >= len(prompt):
            raise RequestError(f"positions is at most {len(prompt) - 1} for this prompt", "steering")
        sampling = asked.sampling(limit or min(DEFAULT_MAX_TOKENS, room))
        return OpenRequest(
            self.figures, label, prompt=prompt, steering=steering, sampling=sampling, n_answers=n_answers
        )


def _parse(body: bytes, kind: type[Any]) -> Any:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = [field.alias or name for name, field in kind.model_fields.items()]
            there = ", ".join(["vector", "strength", "key_strength", "positions", "layers"] if "." in where else names)
            raise RequestError(f"there is no field {where!r} here; there is {there}", where) from None
        raise RequestError(f"{where or 'body'}: {first['msg']}", where or None) from None


def _as_response(error: Exception) -> JSONResponse:
    if isinstance(error, RequestError):
        return JSONResponse(error_body(str(error), "invalid_request_error", error.param, error.code), 400)
    if isinstance(error, Busy):
        return JSONResponse(
            error_body(str(error), "server_error", code="overloaded"), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}
        )
    if isinstance(error, HTTPException):
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        return JSONResponse(error_body(str(error.detail), kind), error.status_code)
    log.error("a request failed", exc_info=error)
    return JSONResponse(error_body(f"unexpected {type(error).__name__}", "server_error"), 500)


def make_app(server: Server, *, key: str | None) -> FastAPI:
    """The application; the engine lives as long as it does."""

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start()
        yield
        await asyncio.to_thread(server.engine.close)

    app = FastAPI(lifespan=living, openapi_url=None)
    count = server.figures.count_refused
    app.add_middleware(RequestGuard, key=key, max_body=server.limits.max_body, count=count)
    app.add_exception_handler(HTTPException, lambda _, error: _as_response(error))
    page = (files("factory.data") / "serve.html").read_text(encoding="utf-8")
    app.get("/", response_class=HTMLResponse)(
        lambda: HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})
    )
    app.get("/health")(server.health)
    app.get("/metrics", response_class=PlainTextResponse)(server.metrics)
    app.get("/v1/models")(server.models)
    app.get("/v1/vectors")(server.vectors)
    app.post("/v1/vectors/reload")(server.reload)
    app.post("/v1/chat/completions")(server.chat)
    app.post("/v1/completions")(server.complete)
    return app
