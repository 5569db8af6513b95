"""The connection to the teacher's endpoint: key, proxy, and a deadline that holds for the whole answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from factory.errors import ConfigError, TeacherRefused
from factory.teacher.endpoint import (
    OPENAI_KEY,
    OPENAI_URL,
    check_address,
    endpoint_name,
    find_key,
    is_loopback,
    shown_address,
)
from factory.teacher.faults import classify

BEGUN = "svf_begun"  # extension of a request: when it was sent, by time.monotonic()


def open_client(base_url: str | None, api_key_env: str | None, timeout: float) -> openai.OpenAI:
    """This process's client for an endpoint, with this process's key; ``timeout`` in seconds for a whole answer.

    Raises:
        TeacherRefused: there is no key for the endpoint, or no way to its address.
    """
    key = find_key(base_url, api_key_env)
    if key is None:
        raise TeacherRefused(
            f"no API key: set {api_key_env or OPENAI_KEY} (or --api-key-file) for the teacher's endpoint"
        )
    try:
        check_address(base_url or OPENAI_URL)
    except ConfigError as error:
        raise TeacherRefused(str(error), "address") from None
    with _making_client:
        return _client(os.getpid(), base_url or OPENAI_URL, key, timeout)


_making_client = threading.Lock()


@lru_cache(maxsize=8)
def _client(process: int, address: str, key: str, timeout: float) -> openai.OpenAI:
    # One client a process: connections do not survive a fork. Retries are the queue's business.
    client = openai.OpenAI(
        api_key=key,
        base_url=address,
        max_retries=0,
        timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
        http_client=_connect(address),
    )
    if address != OPENAI_URL:  # the client takes these from the environment: they name an account at OpenAI
        client.organization = client.project = None
    return client


def _connect(address: str) -> httpx2.Client:
    hooks: dict[str, list[Callable[..., None]]] = {"request": [_note_start], "response": [_hold_deadline]}
    try:
        return openai.DefaultHttpxClient(event_hooks=hooks, trust_env=not is_loopback(address))
    except (ImportError, ValueError) as error:
        kind = "a SOCKS proxy, for which 'socksio' is missing" if isinstance(error, ImportError) else "no proxy's URL"
        raise TeacherRefused(
            f"the teacher at {endpoint_name(address)} cannot be reached: {_proxy_variables()} in the environment is "
            f"{kind}. Unset it, set NO_PROXY={endpoint_name(address)}, or for SOCKS: pip install 'httpx2[socks]'",
            "proxy",
        ) from None


def _proxy_variables() -> str:
    named = (f"{kind}_PROXY" for kind in ("ALL", "HTTPS", "HTTP"))
    return " or ".join(name for name in named if os.environ.get(name) or os.environ.get(name.lower())) or "a proxy"


def describe_way(base_url: str | None) -> str:
    """The address that is asked, and through which proxy, in words that hold no secret."""
    address = base_url or OPENAI_URL
    parts = urlsplit(address)
    shown = shown_address(base_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(address) or proxy_bypass(parts.hostname or ""):
        return shown
    return f"{shown} through the proxy at {urlsplit(proxy).hostname} (NO_PROXY={parts.hostname} goes without it)"


# httpx' read timeout is the longest silence. A server that sends white space while it thinks is never silent.


def _note_start(request: httpx2.Request) -> None:
    request.extensions[BEGUN] = time.monotonic()


def _hold_deadline(response: httpx2.Response) -> None:
    """What is left of an answer's time is all that its body may take, silence included."""
    timeouts = response.request.extensions.get("timeout", {})
    allowed, begun = timeouts.get("read"), response.request.extensions.get(BEGUN)
    if allowed is None or begun is None or not isinstance(response.stream, httpx2.SyncByteStream):
        return
    deadline = begun + allowed
    timeouts["read"] = max(0.001, deadline - time.monotonic())
    response.stream = _Hurried(response.stream, deadline)


class _Hurried(httpx2.SyncByteStream):
    """The body of an answer, until ``deadline`` of ``time.monotonic()``."""

    def __init__(self, stream: httpx2.SyncByteStream, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.stream:
            if time.monotonic() > self.deadline:
                raise httpx2.ReadTimeout("the answer took longer than it may in all")
            yield piece

    def close(self) -> None:
        self.stream.close()


@lru_cache(maxsize=32)
def check_model(client: openai.OpenAI, model: str) -> None:
    """Ask OpenAI whether it has ``model``, which is free, before a call is paid.

    Any other trouble is left to the call itself, which says it better.

    Raises:
        TeacherRefused: it has not.
    """
    try:
        client.models.retrieve(model)
    except openai.NotFoundError as error:
        raise classify(error.response, model, None) from None
    except (openai.OpenAIError, ValueError):
        pass
