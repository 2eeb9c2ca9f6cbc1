"""Reads and writes a schema registry, through the client that it is given.

Needs the extra `registry`. Everything else in this package does no IO; this is called when a
codec is made, and once for every schema id that it has not met.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from codeconvoy.schemas.errors import Unavailable

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

_NOT_FOUND = 404
TIMEOUT_SECONDS = 10


class ConfluentRegistry:
    """A registry that speaks Confluent's API (Confluent's own, Apicurio's ccompat, Karapace)."""

    def __init__(self, client: "SchemaRegistryClient") -> None:
        self._client = client

    @classmethod
    def connect(cls, url: str) -> "ConfluentRegistry":
        """A registry at this URL (user and password may stand in it). Nothing is sent yet.

        Raises:
            Unavailable: the extra `registry` is not installed.
        """
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise Unavailable(
                "schema registry",
                f"its client is not installed ({error})",
                "pip install codeconvoy[registry]",
            ) from error
        return cls(SchemaRegistryClient.new_client({"url": url, "timeout": TIMEOUT_SECONDS}))

    def register(self, subject: str, schema: str) -> int:
        """The id of the schema, registered under the subject.

        Raises:
            Unavailable: the registry can't be reached, or refuses (an incompatible schema).
        """
        from confluent_kafka.schema_registry import Schema

        with _unavailable():
            return int(self._client.register_schema(subject, Schema(schema, "AVRO")))

    def schema(self, schema_id: int) -> str | None:
        """The schema of this id, None where the registry has none.

        Raises:
            Unavailable: the registry can't be reached.
        """
        from confluent_kafka.schema_registry import SchemaRegistryError

        with _unavailable():
            try:
                return str(self._client.get_schema(schema_id).schema_str)
            except SchemaRegistryError as error:
                if error.http_status_code == _NOT_FOUND:
                    return None
                raise


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns what the client raises into the one error that callers know."""
    import httpx2
    from confluent_kafka.schema_registry import SchemaRegistryError

    try:
        yield
    except (SchemaRegistryError, httpx2.HTTPError) as error:
        raise Unavailable(
            "schema registry", str(error), "Check the registry's URL and log, or run without a registry"
        ) from error
