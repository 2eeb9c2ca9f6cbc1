"""Reads calls and replies, writes copies of them without secrets: every call of a task is kept for a time.

It is written beside the work, after the reply: a store that is slow or away delays no call and fails
none. What could not be kept is counted.
"""

import asyncio
from collections.abc import Callable

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.kept import KeptCall, PromptStore, prompt_of, reply_key
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, CallFailed, Origin, Provider, Reply, fingerprint
from codeconvoy.workers.redact import Redact

AT_ONCE = 64
"""Copies that are being written; what comes beyond that is not kept."""
CLOSE_SECONDS = 2.0
"""How long the last ones may take when the provider is closed."""
MAX_REASON_CHARS = 500


class KeepingProvider:
    """A provider whose calls are kept."""

    def __init__(
        self,
        provider: Provider,
        server: str,
        store: PromptStore,
        metrics: ModelMetrics,
        redact: Redact,
        now: Callable[[], int],
    ) -> None:
        """`server` is what a call is shown to have gone to; `now` gives milliseconds since the epoch."""
        self.name = provider.name
        self._provider, self._server, self._store = provider, server, store
        self._metrics, self._redact, self._now = metrics, redact, now
        self._writing: set[asyncio.Task[None]] = set()

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            reply = await self._provider.call(request)
        except asyncio.CancelledError:
            self._keep(request, "cancelled", "", clock() - began)
            raise
        except (CallFailed, Unavailable) as error:
            # What may pass makes the task wait, as Unavailable. Where no call was made it has no such cause.
            failed = error if isinstance(error, CallFailed) else error.__cause__
            if isinstance(failed, CallFailed):
                self._keep(request, str(failed.failure), failed.reason, clock() - began)
            raise
        self._keep(request, reply, "", clock() - began)
        return reply

    def _keep(self, request: Call, came: Reply | str, reason: str, seconds: float) -> None:
        """Begin to write a copy, if there is room for one more."""
        if request.origin is None:
            return
        if len(self._writing) >= AT_ONCE:
            self._metrics.kept.labels("dropped").inc()
            return
        writing = asyncio.create_task(self._write(request.origin, request, came, reason, seconds))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _write(
        self, origin: Origin, request: Call, came: Reply | str, reason: str, seconds: float
    ) -> None:
        said = self._redact(came.text) if isinstance(came, Reply) else ""
        call = KeptCall(
            at=self._now(),
            round=origin.round,
            server=self._server,
            provider=self.name,
            model=request.model,
            prompt=fingerprint(self.name, request),
            reply=reply_key(said),
            outcome=str(came.stop) if isinstance(came, Reply) else came,
            reason=self._redact(reason)[:MAX_REASON_CHARS],
            usage=came.usage if isinstance(came, Reply) else None,
            usage_estimated=came.usage_estimated if isinstance(came, Reply) else False,
            request_id=came.request_id if isinstance(came, Reply) else "",
            seconds=seconds,
            recorded=came.recorded if isinstance(came, Reply) else False,
        )
        try:
            whole = await self._store.keep(origin, call, prompt_of(request, self._redact), said)
        except Unavailable:
            self._metrics.kept.labels("away").inc()
        else:
            self._metrics.kept.labels("kept" if whole else "too_large").inc()

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=CLOSE_SECONDS)
            for writing in late:
                writing.cancel()
            self._metrics.kept.labels("dropped").inc(len(late))
