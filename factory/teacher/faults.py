"""What an error of the teacher's server means: try later, a person must act, or this prompt will never do.

The server's own words are never passed on: some repeat a part of the key, others the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from factory.errors import PairRejected, TeacherBusy, TeacherError, TeacherRefused
from factory.teacher.endpoint import endpoint_name, shown_address
from factory.teacher.request import SPARE, Request

LONG_WAIT = 600.0  # s: a server that asks for more wants a person, not a retry
RETRYABLE = {408, 409, 425, 429}
PROMPT = {400, 413, 422}  # the only statuses that are a verdict on the prompt
UNANSWERED = {"bad_request", "content_filter", "not_json"}  # reasons of rejections that are not an answer's fault
KEY = {401, 403}
NO_PLACE = {404, 405, 410}
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
MODERATED = re.compile(r"content_?(filter|policy)|moderation|flagged|safety|sensitive|data_?inspection", re.IGNORECASE)


def classify(response: httpx2.Response, model: str, base_url: str | None) -> TeacherError | PairRejected:
    """Sort an HTTP error answer."""
    error = _error_in(_content_of(response))
    return _sort(response.status_code, error, response.headers, model, base_url)


def error_in_answer(
    content: object, headers: Mapping[str, str], model: str, base_url: str | None
) -> TeacherError | PairRejected | None:
    """The error that some servers send with status 200 in place of an answer, or None."""
    error = content.get("error") if isinstance(content, dict) else None
    error = error or _first_choice(content).get("error")
    if not error:
        return None
    found: Mapping[str, object] = error if isinstance(error, dict) else {"message": error}
    status = next((int(str(found[name])) for name in ("code", "status") if str(found.get(name)).isdecimal()), 0)
    return _sort(status, found, headers, model, base_url)


def _sort(
    status: int, error: Mapping[str, object], headers: Mapping[str, str], model: str, base_url: str | None
) -> TeacherError | PairRejected:
    where, codes = f"the teacher at {endpoint_name(base_url)}", {str(error.get("code")), str(error.get("type"))}
    if codes & NO_MONEY or status == 402:
        return TeacherRefused(f"the account at {where} has no money left: add credit, then 'svf resume'", "quota")
    if status in RETRYABLE or status >= 500:
        return _later(f"{where} answered {status}", retry_after(headers))
    if "invalid_api_key" in codes or (status in KEY and not is_moderated(error)):
        return TeacherRefused(f"{where} refused the key ({status or 401}): set another, then 'svf resume'")
    if "model_not_found" in codes or (status in NO_PLACE and (base_url is None or _speaks_of_model(error, model))):
        return TeacherRefused(f"{where} has no model {model!r} ({status}): choose another teacher_model", "no_model")
    if is_moderated(error):
        return PairRejected("content_filter", f"{where} does not answer this prompt ({status})")
    if status in PROMPT:
        return PairRejected("bad_request", f"{where} answered {status} to this prompt")
    if status in NO_PLACE:
        return TeacherRefused(
            f"there is no chat API at {shown_address(base_url)}/chat/completions ({status}): mend base_url, which "
            "often ends with /v1, and start again",
            "address",
        )
    if status == 407:
        return TeacherRefused(f"the proxy on the way to {where} wants a password (407)", "proxy")
    if status:
        return TeacherRefused(f"{where} answered {status}: mend what it means, then 'svf resume'", "refused")
    return TeacherBusy(f"{where} sent an error in place of an answer")


def _later(what: str, wait: float | None) -> TeacherError:
    if wait is not None and wait > LONG_WAIT:
        return TeacherRefused(f"{what} and asks to wait {wait / 60:.0f} minutes: 'svf resume' then", "long_wait")
    return TeacherBusy(what, wait)


def is_moderated(error: Mapping[str, object]) -> bool:
    """Whether an error is about the text of one prompt, which a filter disliked."""
    details = error.get("metadata")
    if isinstance(details, dict) and details.keys() & {"flagged_input", "reasons"}:
        return True
    return any(MODERATED.search(str(error.get(name) or "")) for name in ("code", "type"))


def _speaks_of_model(error: Mapping[str, object], model: str) -> bool:
    words = json.dumps(error, ensure_ascii=False)
    return model in words or re.search(r"\bmodel\b", words, re.IGNORECASE) is not None


def refused_parameters(response: httpx2.Response, request: Request) -> set[str]:
    """Parameters of ``request`` that an error answer names and that a call can do without, or under another name."""
    if response.status_code not in (400, 422):
        return set()
    words = response.text
    named: set[str] = {name for name in SPARE if name in request and _names(words, name)}
    # Under another name, because it bounds the cost and is never left out.
    return named | ({"max_tokens"} if "max_tokens" in request and _names(words, "max_completion_tokens") else set())


def _names(words: str, parameter: str) -> bool:
    return re.search(rf"(?<![A-Za-z_]){parameter}(?![A-Za-z_])", words) is not None


def _content_of(response: httpx2.Response) -> object:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _error_in(content: object) -> Mapping[str, object]:
    """The part of a body that says what went wrong; servers agree on no form."""
    if not isinstance(content, dict):
        return {}
    error = content.get("error", content)
    return error if isinstance(error, dict) else {"message": error}


def _first_choice(content: object) -> Mapping[str, object]:
    choices = content.get("choices") if isinstance(content, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from ``Retry-After-Ms``, or ``Retry-After`` as a number or a date."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
