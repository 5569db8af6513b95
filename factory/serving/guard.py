"""Who may ask, and how much: the key, the host's name, and the size of a body, before anything is read."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.serving.entry import error_body

OPEN_PATHS = {"/", "/health"}
DISCARDED_AT_MOST = 64 << 20  # bytes that are still read of a body that is too large, so that the client hears why


def is_this_machine(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class RequestGuard:
    """Refuses with 401, 403 or 413 what should not reach the application.

    Without a key the server is for this machine, so a request must name it by a loopback address: a web
    page that had its own name resolved to 127.0.0.1 does not.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, max_body: int, count: Callable[[int], None]) -> None:
        self.app = app
        self.key = key
        self.max_body = max_body
        self.count = count  # of refusals, by status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        if self.key is None and not is_this_machine(_name_of(headers.get("host", b"localhost"))):
            await self._refuse(send, 403, "this server has no key, so it answers to 127.0.0.1 and localhost only")
            return
        if self.key is not None and scope["path"] not in OPEN_PATHS and not self._is_key(headers):
            await _discard(receive)
            await self._refuse(send, 401, "wrong or missing key: send 'Authorization: Bearer KEY'", "invalid_api_key")
            return
        body = await _read(receive, self.max_body)
        if body is None:
            await self._refuse(send, 413, f"the body is larger than {self.max_body} bytes")
            return
        await self.app(scope, _again(body, receive), send)

    async def _refuse(self, send: Send, status: int, message: str, code: str | None = None) -> None:
        self.count(status)
        content = json.dumps(error_body(message, "invalid_request_error", code=code)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _is_key(self, headers: dict[str, bytes]) -> bool:
        kind, _, given = headers.get("authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), (self.key or "").encode())
        return right and kind.lower() == b"bearer"


def _name_of(host: bytes) -> str:
    text = host.decode("latin-1")
    return text.partition("]")[0] if text.startswith("[") else text.partition(":")[0]


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body; None where it is too large."""
    parts, size = [], 0
    while size <= DISCARDED_AT_MOST:
        message = await receive()
        if message["type"] != "http.request":
            break
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body"):
            break
    return b"".join(parts) if size <= most else None


async def _discard(receive: Receive) -> None:
    await _read(receive, 0)


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application, which gets the body that was read already."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
