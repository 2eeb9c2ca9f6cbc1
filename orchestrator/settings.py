"""Reads the environment (CONVOY_…), writes nothing: one frozen settings object.

Only the entry point reads it, and passes on what others need. Secrets never show in a repr, a
message or a traceback of ours.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.topics import DEFAULT_PARTITIONS, DEFAULT_PREFIX
from codeconvoy.workers.llm.kept import KEEP_MEGABYTES, KEEP_SECONDS

ENV_PREFIX = "CONVOY_"
MAX_PARTITIONS = 1_000
MAX_KEEP_SECONDS = 10 * 366 * 24 * 3_600
MAX_KEEP_MEGABYTES = 1_000_000


def _vendor(name: str) -> AliasChoices:
    """Our own variable first, then the one that the vendor's tools use."""
    return AliasChoices(f"{ENV_PREFIX}{name}", name)


class Settings(BaseSettings):
    """Every setting of every process, with its environment variable `CONVOY_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    kafka: str = ""
    """Bootstrap servers, HOST:PORT[,…]; empty: `convoy up` finds or starts a broker."""
    kafka_options: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """More librdkafka options as a JSON object, passed through: SASL and TLS."""
    redis: str = Field("", repr=False)
    """URL, redis[s]://[[user]:password@]HOST:PORT/DB; empty: `convoy up` finds or starts one."""
    prefix: Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z")] = DEFAULT_PREFIX
    """Begins the names of all topics, groups and Redis keys."""
    partitions: Annotated[int, Field(ge=1, le=MAX_PARTITIONS)] = DEFAULT_PARTITIONS
    """Of every topic, fixed when they are created."""
    roles: Path | None = None
    """A TOML file with roles of one's own."""
    data: Path = Path(".convoy")
    """Directory of `convoy up`: logs, a local broker's data, and fleet.json, which says where broker and
    Redis are where CONVOY_KAFKA and CONVOY_REDIS don't."""
    cache: Path = Field(default_factory=lambda: Path.home() / ".cache" / "codeconvoy")
    """Directory for mirrors of repositories, and for a local broker's jars."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of /metrics and /healthz; 0: a free one."""
    metrics_host: str = "127.0.0.1"
    """Address that they listen on; in a container 0.0.0.0."""
    schema_registry: str = ""
    """URL of a schema registry; empty: single-object framing, which needs none."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """Kafka's rebalance protocol; `consumer` is KIP-848."""
    keep_prompts_seconds: Annotated[int, Field(ge=0, le=MAX_KEEP_SECONDS)] = KEEP_SECONDS
    """How long what models were asked and answered is kept in Redis; 0: not at all."""
    keep_prompts_megabytes: Annotated[int, Field(ge=1, le=MAX_KEEP_MEGABYTES)] = KEEP_MEGABYTES
    """Of Redis that it may take, the oldest goes first."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otel_endpoint: Annotated[str, Field(pattern=r"\A(https?://\S+)?\z", repr=False)] = ""
    """URL of an OpenTelemetry collector that takes OTLP over HTTP; empty: no spans are told."""
    openai_api_key: SecretStr | None = Field(None, validation_alias=_vendor("OPENAI_API_KEY"))
    openai_base_url: str = Field("", validation_alias=_vendor("OPENAI_BASE_URL"))
    """Of any server that speaks OpenAI's API; empty: OpenAI's own."""
    anthropic_api_key: SecretStr | None = Field(None, validation_alias=_vendor("ANTHROPIC_API_KEY"))
    anthropic_base_url: str = Field("", validation_alias=_vendor("ANTHROPIC_BASE_URL"))


def load_settings(**given: object) -> Settings:
    """The settings: what is given (options of the command line) over the environment.

    Raises:
        BadInput: a value can't be used; the field is its environment variable, and the value,
            which may be a secret, is not shown.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0])
        field = name if name.isupper() else f"{ENV_PREFIX}{name.upper()}"
        raise BadInput(field, first["msg"], "Correct or unset it") from None
    except ValueError as error:
        # pydantic-settings' own: a variable that should be JSON and is not.
        raise BadInput(f"{ENV_PREFIX}KAFKA_OPTIONS", "it is not JSON", 'Write {"option": "value"}') from error
