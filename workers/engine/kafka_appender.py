"""Reads nothing, writes single records: the Kafka bus's Appender.

An idempotent producer without transactions. Each record is acknowledged by all replicas in sync, or
reported as not acknowledged after ten seconds. Delivery reports come on a thread of its own.
"""

import asyncio
import threading
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from codeconvoy.schemas.errors import BusError, ConvoyError
from codeconvoy.workers.engine.bus import Outgoing
from codeconvoy.workers.engine.kafka_client import Complaints, Settings, as_bus_error
from codeconvoy.workers.engine.limits import check_limits, key_bytes

_ANY_PARTITION = -1
_POLL_SECONDS = 0.1


class KafkaAppender:
    """A producer that is not the owner of anything."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._complaints = Complaints()
        self._producer = Producer({**settings, "error_cb": self._complaints})
        self._waiting = threading.Semaphore(0)
        """Records whose report is to come, so that nobody polls for nothing."""
        self.is_closed = False
        self._thread = threading.Thread(target=self._serve, name="kafka-appender", daemon=True)
        self._thread.start()

    async def append(self, output: Outgoing) -> None:
        """See `Appender.append`."""
        check_limits([output], None)
        if self.is_closed:
            raise BusError("this client is closed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def report(error: KafkaError | None, message: "Message[bytes, bytes]") -> None:
            told = None if error is None else self._as_error(error)
            loop.call_soon_threadsafe(partial(_answer, answer, told))

        try:
            self._producer.produce(
                output.topic,
                output.value,
                key_bytes(output.key),
                _ANY_PARTITION if output.partition is None else output.partition,
                headers=list(output.headers.items()),
                on_delivery=report,
            )
        except (KafkaException, BufferError) as error:
            raise self._complaints.unavailable(self._settings, error) from error
        self._waiting.release()
        await answer

    async def close(self) -> None:
        """See `Appender.close`. What is on its way is waited for."""
        if not self.is_closed:
            self.is_closed = True
            self._waiting.release()
            await asyncio.to_thread(self._thread.join)

    def _as_error(self, error: KafkaError) -> ConvoyError:
        refused = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
        if error.fatal() or error.code() in refused:
            return as_bus_error(error)
        return self._complaints.unavailable(self._settings, error.str())

    def _serve(self) -> None:
        """On the thread: serve delivery reports while there are some to come."""
        while True:
            self._waiting.acquire()
            while len(self._producer):
                self._producer.poll(_POLL_SECONDS)
            if self.is_closed:
                return


def _answer(answer: "asyncio.Future[None]", error: ConvoyError | None) -> None:
    """On the loop: tell whoever waits, if anybody still does."""
    if answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)
