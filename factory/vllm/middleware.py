"""The request field ``steering`` and models ``MODEL:STYLE`` at vLLM's own server.

    vllm serve MODEL ... --middleware factory.vllm.middleware.SteeringField

vLLM's server knows neither; this puts what they ask for into ``kv_transfer_params``, where the connector
finds it, and answers 400 to what cannot be followed. Without it clients fill ``kv_transfer_params`` themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serving.entry import RequestError, SteeringEntry, entries_of, error_body
from factory.serving.library import VectorLibrary
from factory.vector.setting import Setting
from factory.vllm.asked import FIELD, Asked, read_asked, settings_of
from factory.vllm.model import ServedModel, open_library

CHAT, TEXT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
VECTORS, RELOAD = "/v1/vectors", "/v1/vectors/reload"
PARAMETERS = "kv_transfer_params"


class SteeringField:
    """Stands before vLLM's application; what is not about steering passes as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.desk: Desk | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request about vectors, or let it through, with its steering put where the connector finds it."""
        asks = (scope.get("method"), scope.get("path"))
        if asks not in {("POST", CHAT), ("POST", TEXT), ("GET", MODELS), ("GET", VECTORS), ("POST", RELOAD)}:
            await self.app(scope, receive, send)
            return
        keys = _keys(scope["app"].state)
        if not keys:
            await self._answer(scope, receive, send)
            return
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        await AuthenticationMiddleware(self._answer, keys)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.desk is None:
            self.desk = await asyncio.to_thread(Desk, scope["app"].state.vllm_config)
        desk, path = self.desk, scope["path"]
        if path in (VECTORS, RELOAD):
            response: Response = await asyncio.to_thread(desk.vectors, look_now=path == RELOAD)
            await response(scope, receive, send)
        elif path == MODELS:
            await self.app(scope, receive, await desk.naming_styles(send))
        else:
            await self._steer(desk, scope, receive, send)

    async def _steer(self, desk: Desk, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        try:
            body = await asyncio.to_thread(desk.translated, body, is_chat=scope["path"] == CHAT)
        except RequestError as error:
            content = error_body(str(error), "invalid_request_error", error.param, error.code)
            await JSONResponse(content, 400)(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.app({**scope, "headers": headers}, _replaying(body, receive), send)


class Desk:
    """What the server's process knows of the model and its vectors."""

    def __init__(self, config: Any) -> None:
        self.model = ServedModel.of(config)
        self.library: VectorLibrary = open_library(config, self.model)

    def vectors(self, *, look_now: bool) -> JSONResponse:
        """The vectors with what is recommended for them, and those that were refused."""
        (self.library.reload if look_now else self.library.refresh)()
        described = [
            {"name": name, "layers": vector.layer_indices, "strength": Setting.recommended(vector).strength}
            for name, vector in self.library.vectors.items()
        ]
        return JSONResponse({"data": described, "refused": self.library.refused})

    async def naming_styles(self, send: Send) -> Send:
        """A ``send`` that puts ``MODEL:STYLE`` for each vector behind the models that vLLM lists."""
        await asyncio.to_thread(self.library.refresh)
        start: Message = {}
        parts: list[bytes] = []

        async def naming(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                content = self._with_styles(b"".join(parts)) if start["status"] == 200 else b"".join(parts)
                headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
                await send({"type": "http.response.body", "body": content})

        return naming

    def _with_styles(self, body: bytes) -> bytes:
        listed = json.loads(body)
        base: Mapping[str, object] = next((model for model in listed["data"] if model["id"] == self.model.name), {})
        styles = [f"{self.model.name}:{name}" for name in self.library.vectors]
        listed["data"] += [{**base, "id": name, "parent": self.model.name} for name in styles]
        return json.dumps(listed).encode()

    def translated(self, body: bytes, *, is_chat: bool) -> bytes:
        """A request's body with its steering in ``kv_transfer_params``; as it is where vLLM will refuse it anyway.

        Raises:
            RequestError: there is no such model or vector, or a field is not what it should be.
        """
        try:
            asked = json.loads(body)
        except ValueError:
            return body
        if not isinstance(asked, dict) or not isinstance(asked.get("model", self.model.name), str):
            return body
        given = asked.pop(FIELD, None)
        inner = read_asked(asked.get(PARAMETERS))
        steering = _entries(given) if given is not None else inner.steering if inner else None
        name = asked.get("model", self.model.name)
        entries = self._entries_of(name, steering)
        if name in self.model.names or name.startswith(f"{self.model.name}:"):
            asked["model"] = self.model.name
        settings_of(entries, self.library, self.model)
        asked[PARAMETERS] = {
            **(asked.get(PARAMETERS) or {}),
            FIELD: [entry.model_dump(exclude_none=True) for entry in entries],
            "neutral": inner.neutral if inner else is_chat and _begins_an_answer(asked),
        }
        return json.dumps(asked).encode()

    def _entries_of(self, name: str, steering: list[SteeringEntry] | None) -> list[SteeringEntry]:
        self.library.refresh()
        base = self.model.name
        if not name.startswith(f"{base}:"):  # the model; or a LoRA adapter, or one that vLLM will say is not there
            return list(steering or ())
        if name.removeprefix(f"{base}:") not in self.library.vectors:
            self.library.reload()
        return list(entries_of(name, steering, base, self.library))


def _entries(given: Any) -> list[SteeringEntry]:
    try:
        return Asked.model_validate({FIELD: given}).steering
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            there = ", ".join(SteeringEntry.model_fields)
            raise RequestError(f"there is no field {where!r} here; there is {there}", where) from None
        raise RequestError(f"{where}: {first['msg']}", where) from None


def _begins_an_answer(asked: Mapping[str, object]) -> bool:
    """Whether a chat's prompt ends where an answer begins; one that is continued gets no neutral token."""
    return asked.get("add_generation_prompt") is not False and not asked.get("continue_final_message")


def _keys(state: Any) -> list[str]:
    """The keys of the server, as vLLM finds them: ``--api-key``, else ``VLLM_API_KEY``."""
    given = getattr(getattr(state, "args", None), "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    return [key for key in ([given] if isinstance(given, str) else given) if key]


def _replaying(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application, which gets ``body``; afterwards it hears of the client's leaving."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
