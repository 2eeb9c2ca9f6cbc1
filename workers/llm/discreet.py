"""Reads replies, writes them on without this process's own secrets: nothing that a server repeats is kept.

Nobody tells a model the keys of its server, but a server or a proxy in between may put what it was sent
into an answer. That would go into files, events and commits. What the prompt held itself is the user's
own, and stays.
"""

from dataclasses import replace

from codeconvoy.workers.llm.provider import Call, Provider, Reply
from codeconvoy.workers.redact import Redactor


class DiscreetProvider:
    """A provider whose replies give away no secret."""

    def __init__(self, provider: Provider, redact: Redactor) -> None:
        self.name = provider.name
        self._provider, self._redact = provider, redact

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        reply = await self._provider.call(request)
        asked = "\n".join((request.system, *(message.content for message in request.messages)))
        text = self._redact.without_given_away(reply.text, asked)
        return replace(reply, text=text) if text != reply.text else reply

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()
