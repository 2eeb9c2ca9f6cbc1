"""Reads nothing, writes nothing: what an HTTP answer of a model API means for a call.

Both SDKs raise errors of the same shape, generated from one template: a status, headers and a
body. They are told apart here by their attributes, so that one table serves both.
"""

import email.utils
import time
from collections.abc import Mapping

from codeconvoy.workers.llm.provider import CallFailed, Failure

MAX_REASON_CHARS = 300

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
    code, message = _said(body)
    failure = _BY_STATUS.get(status, Failure.SERVER if status >= 500 else Failure.REJECTED)
    if code in ("insufficient_quota", "billing_error"):
        failure = Failure.QUOTA
    if failure is Failure.KEY:
        # Servers repeat part of the key in this message, so it is not repeated here.
        reason = f"{provider}: the key is not accepted (HTTP {status}). Check the key of this provider"
    else:
        said = message.replace(key, "[key]") if key else message
        reason = f"{provider}: {failure.value.replace('_', ' ')} (HTTP {status}): {said[:MAX_REASON_CHARS]}"
    return CallFailed(failure, reason, status=status, retry_after=retry_after(headers, time.time()))


def rejected_parameter(body: object) -> str:
    """The parameter that a 400 of OpenAI's API names, or nothing."""
    param = body.get("param") if isinstance(body, dict) else None
    return param if isinstance(param, str) else ""


def _said(body: object) -> tuple[str, str]:
    """Code (or type) and message of an error body: OpenAI's is the inner object, Anthropic's the outer."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return "", "no reason given"
    code = inner.get("code") or inner.get("type") or ""
    return str(code), str(inner.get("message") or "no reason given")


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
