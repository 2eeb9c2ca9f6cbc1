"""Reads and writes topics of a Kafka broker (3.7 or later): the bus that production runs on.

It also runs on librdkafka's mock cluster (`embedded=True`), whose topics have the partitions that it
gives them, and which forgets offsets sent inside a transaction: they are committed right after it,
so that a crash between the two repeats work there, and only there.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import RebalanceListener
from codeconvoy.workers.engine.kafka_appender import KafkaAppender
from codeconvoy.workers.engine.kafka_client import (
    Complaints,
    admin_settings,
    appender_settings,
    consumer_settings,
    producer_settings,
)
from codeconvoy.workers.engine.kafka_consumer import KafkaConsumer
from codeconvoy.workers.engine.kafka_hanging import HangingFinder, Last
from codeconvoy.workers.engine.kafka_producer import KafkaProducer
from codeconvoy.workers.engine.kafka_reader import KafkaReader

_METADATA_SECONDS = 5.0
_CREATE_SECONDS = 30.0
_POLL_SECONDS = 0.1

Client = KafkaConsumer | KafkaProducer | KafkaAppender | KafkaReader


class KafkaBus:
    """Makes the clients of one broker.

    `settings` are librdkafka's (`bootstrap.servers`, `security.protocol`, `sasl.password`,
    `group.protocol`, …); what correctness rests on can't be overridden by them.
    """

    def __init__(
        self, settings: Mapping[str, str], *, embedded: bool = False, topics: Topics | None = None
    ) -> None:
        """`topics` are those in which hanging transactions are looked for."""
        self._settings, self._embedded, self._topics = dict(settings), embedded, topics
        self._clients: list[Client] = []
        self._last: dict[str, Last] = {}
        """For each transactional id: a producer may be followed by another one."""
        self._admin: AdminClient | None = None
        self._complaints = Complaints()

    def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, client_id: str
    ) -> KafkaConsumer:
        """See `Bus.consumer`."""
        consumer = KafkaConsumer(consumer_settings(self._settings, group, client_id), topics, listener)
        self._keep(consumer)
        return consumer

    async def producer(self, transactional_id: str, group: str = "") -> KafkaProducer:
        """See `Bus.producer`. With a group it ends what hangs of its id: see `kafka_hanging`."""
        settings = producer_settings(self._settings, transactional_id)
        last = self._last.setdefault(transactional_id, Last())
        producer = KafkaProducer(settings, embedded=self._embedded, last=last)
        self._keep(producer)
        try:
            await producer.start()
            if group and self._topics is not None and not self._embedded:
                seconds = int(settings["transaction.timeout.ms"]) / 1000
                await producer.mend(HangingFinder(self._settings, self._topics, group, seconds))
        except BaseException:
            await producer.close()
            raise
        return producer

    def appender(self, client_id: str) -> KafkaAppender:
        """See `Bus.appender`."""
        appender = KafkaAppender(appender_settings(self._settings, client_id))
        self._keep(appender)
        return appender

    def reader(self) -> KafkaReader:
        """See `Bus.reader`."""
        reader = KafkaReader(self._settings)
        self._keep(reader)
        return reader

    def _keep(self, client: Client) -> None:
        """Know a client until it is closed: a closed one that is held keeps thread-local storage, of
        which a process has about a thousand."""
        self._clients = [known for known in self._clients if not known.is_closed]
        self._clients.append(client)

    async def partition_counts(self, topics: Sequence[str]) -> Mapping[str, int]:
        """See `Bus.partition_counts`."""
        return await asyncio.to_thread(self._partition_counts, topics)

    async def create_topics(self, topics: Mapping[str, Mapping[str, str]], partitions: int) -> None:
        """See `Bus.create_topics`. An embedded broker chooses the partition count itself."""
        await asyncio.to_thread(self._create_topics, topics, partitions)

    async def close(self) -> None:
        """See `Bus.close`. Consumers first, so that they can commit while they leave."""
        order = sorted(self._clients, key=lambda client: isinstance(client, KafkaProducer))
        self._clients.clear()
        for client in order:
            await client.close()

    def _client(self) -> AdminClient:
        if self._admin is None:
            settings = admin_settings(self._settings)
            settings["error_cb"] = self._complaints
            self._admin = AdminClient(settings)
        return self._admin

    def _partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        try:
            known = self._client().list_topics(timeout=_METADATA_SECONDS).topics
        except KafkaException as error:
            self._client().poll(0.0)  # serves error_cb, which has the reason
            raise self._complaints.unavailable(self._settings, error.args[0].str()) from error
        return {name: len(known[name].partitions) for name in topics if name in known}

    def _create_topics(self, topics: Mapping[str, Mapping[str, str]], partitions: int) -> None:
        existing = self._partition_counts(list(topics))
        missing = {name: config for name, config in topics.items() if name not in existing}
        for name in missing if self._embedded else ():
            self._client().list_topics(name, timeout=_METADATA_SECONDS)  # asking for it creates it
        if missing and not self._embedded:
            new = [NewTopic(name, num_partitions=partitions, config=dict(missing[name])) for name in missing]
            for name, created in self._client().create_topics(new, request_timeout=_CREATE_SECONDS).items():
                try:
                    created.result()
                except KafkaException as error:
                    # Another process of the fleet may have been faster.
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        reason = f"topic {name}: {error.args[0].str()}"
                        raise self._complaints.unavailable(self._settings, reason) from error
        self._await_topics(list(missing))

    def _await_topics(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + _CREATE_SECONDS
        while len(found := self._partition_counts(names)) < len(names):
            if time.monotonic() > deadline:
                absent = ", ".join(sorted(set(names) - set(found)))
                raise self._complaints.unavailable(self._settings, f"no such topics after creation: {absent}")
            time.sleep(_POLL_SECONDS)
