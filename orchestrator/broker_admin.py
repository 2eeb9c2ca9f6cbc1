"""Reads and deletes groups and topics of a Kafka broker: what operators do, and no process of the fleet."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.kafka_client import admin_settings

SECONDS = 10.0


class BrokerAdmin:
    """An admin client. All calls block, at most some ten seconds."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        """`settings` are those of `KafkaBus`."""
        self._client = AdminClient(admin_settings(settings))

    def members(self, groups: Sequence[str]) -> Mapping[str, int]:
        """How many processes are in each of the groups.

        Raises:
            Unavailable: the broker does not answer, or can't tell (the embedded one).
        """
        futures = self._client.describe_consumer_groups(list(groups), request_timeout=SECONDS)
        return {group: len(_result(future).members) for group, future in futures.items()}

    def topics(self, prefix: str) -> Sequence[str]:
        """The topics whose names start so, sorted.

        Raises:
            Unavailable: the broker does not answer.
        """
        try:
            return sorted(
                name for name in self._client.list_topics(timeout=SECONDS).topics if name.startswith(prefix)
            )
        except KafkaException as error:
            raise _unavailable(error) from error

    def groups(self, prefix: str) -> Sequence[str]:
        """The consumer groups whose names start so, sorted.

        Raises:
            Unavailable: the broker does not answer.
        """
        found = _result(self._client.list_consumer_groups(request_timeout=SECONDS))
        return sorted(group.group_id for group in found.valid if group.group_id.startswith(prefix))

    def delete(self, topics: Sequence[str], groups: Sequence[str]) -> None:
        """Delete topics and groups. What is deleted already when one fails stays deleted.

        Raises:
            Unavailable: the broker does not answer, or refuses.
        """
        if topics:
            for future in self._client.delete_topics(list(topics), request_timeout=SECONDS).values():
                _result(future)
        if groups:
            for future in self._client.delete_consumer_groups(list(groups), request_timeout=SECONDS).values():
                _result(future)


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result(SECONDS + 5)
    except (KafkaException, TimeoutError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    reason = error.args[0].str() if isinstance(error, KafkaException) else "it does not answer"
    return Unavailable("Kafka", reason, "Check that the broker runs, and that this user may do this")
