"""Reads nothing, writes nothing: what an HTTP answer of a model API means for a call.

Both SDKs raise errors of the same shape, generated from one template: a status, headers and a
body. They are told apart here by their attributes, so that one table serves both. A stream can
fail after its status 200: then the code that the error event names decides.
"""

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import cast

import httpx2

from codeconvoy.workers.llm.provider import CallFailed, Failure

CONNECT_SECONDS = 10.0
DRAIN_SECONDS = 0.1
MAX_REASON_CHARS = 300
NEVER_SENT = frozenset(("ConnectError", "ConnectTimeout"))
"""Causes of a failed connection, by the HTTP client's names: there was none to send a request over."""

_BY_STATUS = {
    401: Failure.KEY,
    402: Failure.QUOTA,
    403: Failure.KEY,
    408: Failure.TIMEOUT,
    409: Failure.SERVER,
    425: Failure.SERVER,
    429: Failure.RATE_LIMITED,
    503: Failure.OVERLOADED,
    529: Failure.OVERLOADED,
}
_BY_CODE = {
    "authentication_error": Failure.KEY,
    "invalid_api_key": Failure.KEY,
    "permission_error": Failure.KEY,
    "billing_error": Failure.QUOTA,
    "insufficient_quota": Failure.QUOTA,
    "context_length_exceeded": Failure.REJECTED,
    "invalid_prompt": Failure.REJECTED,
    "invalid_request_error": Failure.REJECTED,
    "model_not_found": Failure.REJECTED,
    "not_found_error": Failure.REJECTED,
    "request_too_large": Failure.REJECTED,
    "rate_limit_error": Failure.RATE_LIMITED,
    "rate_limit_exceeded": Failure.RATE_LIMITED,
    "overloaded_error": Failure.OVERLOADED,
    "timeout_error": Failure.TIMEOUT,
}
"""What an error in a reply with status 200 stands for; any other is the server's own."""


def timeout_of(*, stream: bool, idle_seconds: float) -> httpx2.Timeout:
    """The limits of a connection; the call's own deadline is over all of them."""
    return httpx2.Timeout(None, connect=CONNECT_SECONDS, read=idle_seconds if stream else None)


def failure_of(provider: str, sdk: ModuleType, error: Exception, key: str) -> CallFailed:
    """What an error of an SDK, or of the HTTP client below it, means.

    Args:
        provider: named in the reason.
        sdk: the module whose errors these are.
        error: what was raised.
        key: the secret that was sent: it is struck out of what the server said.
    """
    if isinstance(error, sdk.APIStatusError):
        response = error.response
        return status_failure(provider, error.status_code, response.headers, error.body, key)
    if isinstance(error, sdk.APITimeoutError | httpx2.TimeoutException):
        return CallFailed(
            Failure.TIMEOUT, f"{provider}: the connection timed out, or stood still for too long"
        )
    if isinstance(error, sdk.APIConnectionError | httpx2.HTTPError):
        cause = type(error.__cause__ or error).__name__
        reason = f"{provider}: the connection failed or was cut ({cause})"
        return CallFailed(Failure.CONNECTION, reason, is_sent=cause not in NEVER_SENT)
    if isinstance(error, sdk.APIError) and error.body is not None:
        return said_failure(provider, error.body, key)
    return CallFailed(Failure.GARBLED, f"{provider}: not a reply of its API ({type(error).__name__})")


def status_failure(
    provider: str, status: int, headers: Mapping[str, str], body: object, key: str
) -> CallFailed:
    """The failure that an error status stands for.

    Args:
        provider: named in the reason.
        status: the HTTP status.
        headers: of the response, by lower-case name.
        body: the `error` object of the reply, as the SDK decoded it.
        key: the secret that was sent: it is struck out of what the server said.
    """
    if status < 400:
        return said_failure(provider, body, key)
    code, message = _said(body)
    failure = _BY_STATUS.get(status, Failure.SERVER if status >= 500 else Failure.REJECTED)
    if code in ("insufficient_quota", "billing_error"):
        failure = Failure.QUOTA
    reason = _reason(provider, failure, f"HTTP {status}", message, key)
    pause = retry_after(headers, time.time())
    return CallFailed(failure, reason, status=status, code=code, retry_after=pause)


def said_failure(provider: str, body: object, key: str) -> CallFailed:
    """The failure that an error object within a reply stands for."""
    code, message = _said(body)
    failure = _BY_CODE.get(code, Failure.SERVER)
    if code.isdecimal() and 400 <= int(code) < 500:  # some servers put their status there
        failure = _BY_STATUS.get(int(code), Failure.REJECTED)
    return CallFailed(failure, _reason(provider, failure, code or "no code", message, key))


def cut_short(provider: str, *, began: bool) -> CallFailed:
    """The failure of a stream that ended before the API's last event: never a short reply."""
    if began:
        return CallFailed(Failure.CONNECTION, f"{provider}: the stream was cut before its end")
    reason = (
        f"{provider}: the reply holds no event. A server that can't stream needs the option stream = false"
    )
    return CallFailed(Failure.GARBLED, reason)


async def drain(response: httpx2.Response) -> None:
    """Read what comes after the API's last event, which is nothing or little: so that the connection can
    be used again. The reply is whole, so it does not matter how this ends."""
    with suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in cast(AsyncIterator[bytes], response.stream):
                pass


@contextmanager
def shape_of(provider: str) -> Iterator[None]:
    """Reads a reply. The SDKs do not check shapes, so a wrong one shows while it is read."""
    try:
        yield
    except (AttributeError, TypeError, IndexError) as error:
        reason = f"{provider}: the reply has not the API's shape: {error}"
        raise CallFailed(Failure.GARBLED, reason[:MAX_REASON_CHARS]) from error


def rejected_parameter(body: object) -> str:
    """The parameter that a 400 of OpenAI's API names, or nothing."""
    param = body.get("param") if isinstance(body, dict) else None
    return param if isinstance(param, str) else ""


def _reason(provider: str, failure: Failure, code: str, message: str, key: str) -> str:
    if failure is Failure.KEY:
        # Servers repeat part of the key in this message, so it is not repeated here.
        return f"{provider}: the key is not accepted ({code}). Check the key of this provider"
    said = f"({code}): {message}"
    said = said.replace(key, "[key]") if key else said
    return f"{provider}: {failure.value.replace('_', ' ')} {said[:MAX_REASON_CHARS]}"


def _said(body: object) -> tuple[str, str]:
    """Code (or type) and message of an error body: OpenAI's is the inner object, Anthropic's the outer."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return "", "no reason given"
    code = inner.get("code") or inner.get("type") or ""
    return str(code)[:MAX_REASON_CHARS], str(inner.get("message") or "no reason given")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (RFC 9110: seconds or a date)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    except (KeyError, ValueError):
        return None
