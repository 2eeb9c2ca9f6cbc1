"""Reads and deletes groups and topics of a Kafka broker: what operators do, and no process of the fleet."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.kafka_client import admin_settings

SECONDS = 10.0


class BrokerAdmin:
    """An admin client. All calls block, for little longer than its `seconds`."""

    def __init__(self, settings: Mapping[str, str], seconds: float = SECONDS) -> None:
        """`settings` are those of `KafkaBus`."""
        self._settings, self._seconds = admin_settings(settings), seconds

    def _client(self) -> AdminClient:
        """One for each question, and connected. A question about a group that is asked of one that is just
        connecting may be lost; and once one was not answered in time, its client aborts the whole process
        when the group's coordinator can be reached (librdkafka 2.16.1, its issue 4605)."""
        client = AdminClient(self._settings)
        self._topics(client)
        return client

    def _topics(self, client: AdminClient) -> Iterable[str]:
        try:
            return client.list_topics(timeout=self._seconds).topics
        except KafkaException as error:
            raise _unavailable(error) from error

    def members(self, groups: Sequence[str]) -> Mapping[str, int]:
        """How many processes are in each of the groups.

        Raises:
            Unavailable: the broker does not answer, or can't tell (the embedded one).
        """
        client = self._client()
        futures = client.describe_consumer_groups(list(groups), request_timeout=self._seconds)
        return {group: len(self._result(future).members) for group, future in futures.items()}

    def topics(self, prefix: str) -> Sequence[str]:
        """The topics whose names start so, sorted.

        Raises:
            Unavailable: the broker does not answer.
        """
        names = self._topics(AdminClient(self._settings))
        return sorted(name for name in names if name.startswith(prefix))

    def groups(self, prefix: str) -> Sequence[str]:
        """The consumer groups whose names start so, sorted.

        Raises:
            Unavailable: the broker does not answer.
        """
        client = self._client()
        found = self._result(client.list_consumer_groups(request_timeout=self._seconds))
        return sorted(group.group_id for group in found.valid if group.group_id.startswith(prefix))

    def delete(self, topics: Sequence[str], groups: Sequence[str]) -> None:
        """Delete topics and groups. What is deleted already when one fails stays deleted.

        Raises:
            Unavailable: the broker does not answer, or refuses.
        """
        client = self._client()
        if topics:
            for future in client.delete_topics(list(topics), request_timeout=self._seconds).values():
                self._result(future)
        if groups:
            for future in client.delete_consumer_groups(list(groups), request_timeout=self._seconds).values():
                self._result(future)

    def _result(self, future: "Future[Any]") -> Any:
        try:
            return future.result(self._seconds + 5)
        except (KafkaException, TimeoutError) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    reason = error.args[0].str() if isinstance(error, KafkaException) else "it does not answer"
    return Unavailable("Kafka", reason, "Check that the broker runs, and that this user may do this")
