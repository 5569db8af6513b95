"""Where the teacher is: its address, under one name and without secrets, and whose key goes there."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from factory.errors import ConfigError

OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"  # said, as the client would take another from OPENAI_BASE_URL
USUAL_PORTS = {"http": ":80", "https": ":443"}
CALLED = "/chat/completions"  # what the client puts behind an address


def find_key(base_url: str | None, api_key_env: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key for an endpoint: the named variable, else OPENAI_API_KEY at OpenAI alone.

    A server of one's own never receives the OpenAI key unless the configuration names it; without
    a variable it gets the placeholder ``none``.
    """
    if api_key_env:
        return environment.get(api_key_env) or None
    return (environment.get(OPENAI_KEY) or None) if base_url is None else "none"


def endpoint_name(base_url: str | None) -> str:
    """An endpoint in words that may be shown: its host, never what a URL may hide."""
    try:
        return (urlsplit(base_url).hostname or "the server") if base_url else "OpenAI"
    except ValueError:
        return "the server"


def shown_address(base_url: str | None) -> str:
    """An address as far as it may be shown: scheme, host, port and path."""
    parts = urlsplit(base_url or OPENAI_URL)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def tidy_address(base_url: str) -> str:
    """One name for one server: no spaces around it, no slash behind it, no usual port, its host in small letters."""
    text = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(text)
    except ValueError:  # check_address says so
        return text
    host = parts.netloc.lower().removesuffix(USUAL_PORTS.get(parts.scheme, "no port"))
    return urlunsplit(parts._replace(netloc=host))


def check_address(base_url: str) -> None:
    """Refuse an address that cannot be reached, or that holds a secret: it stands in files made to be shared.

    Raises:
        ConfigError: says what is wrong, without the secret.
    """
    problem = _problem_of(base_url)
    if problem:
        raise ConfigError(f"base_url {problem}")


def _problem_of(base_url: str) -> str | None:
    key_elsewhere = "would be written into files that are made to be shared: name the key's variable in api_key_env"
    before_path = base_url.split("://", 1)[-1].split("/", 1)[0]
    if "@" in before_path:
        return f"holds a user name or password, which {key_elsewhere}"
    if "?" in base_url or "#" in base_url:
        return f"should end with the path, found something behind '?' or '#', which {key_elsewhere}"
    if not base_url.startswith(("http://", "https://")):
        return f"should begin with http:// or https://, found {base_url!r}: did you mean http://{before_path}/v1?"
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError as error:
        return f"{base_url!r} is no address: {error}"
    if not parts.hostname:
        return f"{base_url!r} names no host"
    if parts.path.endswith(CALLED):
        return f"should end before {CALLED}, which is added to it: {base_url.removesuffix(CALLED)}"
    return None


def is_loopback(base_url: str) -> bool:
    """Whether a server is on this very machine, where no proxy stands between."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
