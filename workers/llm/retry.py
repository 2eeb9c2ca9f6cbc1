"""Reads and writes nothing itself: tries a call again, a bounded number of times, within one deadline.

Only failures that may pass are tried again (a list of them, not of the others), never a cancelled call.
What the server says in Retry-After is waited for; else the pause grows, with full jitter (M. Brooker,
Exponential Backoff And Jitter, 2015). The SDKs' own retries are off.
"""

import asyncio
from dataclasses import replace

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, ModelUnavailable, Provider, Reply

ATTEMPTS = 3
"""HTTP requests of one logical call."""
LONGEST_PAUSE = 30.0
"""Seconds that a call waits with its slot."""
_PASSING = frozenset(
    (
        Failure.RATE_LIMITED,
        Failure.OVERLOADED,
        Failure.SERVER,
        Failure.TIMEOUT,
        Failure.CONNECTION,
        Failure.GARBLED,
    )
)
_GROWING = wait_random_exponential(multiplier=0.5, max=10.0)


class RetryingProvider:
    """A provider that tries again."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self._provider = provider

    async def call(self, request: Call) -> Reply:
        """See `Provider`. The deadline is over all attempts and the pauses between them.

        Raises:
            ModelUnavailable: the model has no room for this fleet now: the task waits.
            CallFailed: the last attempt's failure.
        """
        try:
            return await self._tried(request)
        except CallFailed as failed:
            if failed.failure is Failure.RATE_LIMITED:
                raise ModelUnavailable(self.name, failed.reason, "Wait, or lower the role's rate") from failed
            raise

    async def _tried(self, request: Call) -> Reply:
        clock = asyncio.get_running_loop().time
        ends = clock() + request.deadline_seconds

        def worth_it(error: BaseException) -> bool:
            if not isinstance(error, CallFailed) or error.failure not in _PASSING:
                return False
            pause = error.retry_after or 0.0
            return pause <= LONGEST_PAUSE and clock() + pause < ends

        async for attempt in AsyncRetrying(
            sleep=asyncio.sleep,
            stop=stop_after_attempt(ATTEMPTS),
            wait=_pause,
            retry=retry_if_exception(worth_it),
            reraise=True,
        ):
            with attempt:
                left = ends - clock()
                if left <= 0:
                    raise CallFailed(Failure.TIMEOUT, f"{self.name}: no reply within the deadline")
                return await self._provider.call(replace(request, deadline_seconds=left))
        raise AssertionError("it returns or raises")

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, CallFailed) else None
    return _GROWING(state) if asked is None else asked
