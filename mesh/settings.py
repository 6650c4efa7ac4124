"""What the environment may set: `MESH_*` variables, and nowhere else is the environment read."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.subjects import Subjects


class Settings(BaseSettings):
    """Settings of a peer or a client; each field is read from `MESH_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="MESH_", frozen=True, extra="ignore")

    nats_url: str | None = Field(default=None, description="Server addresses, comma-separated. Unset: the local mesh.")
    nats_user: str | None = None
    nats_password: SecretStr | None = None
    nats_token: SecretStr | None = None
    nats_creds: Path | None = Field(default=None, description="A NATS credentials file.")
    nats_nkey_seed: Path | None = Field(default=None, description="A file with an NKEY seed.")
    nats_tls_ca: Path | None = Field(default=None, description="Certificate authority of the servers.")
    nats_tls_cert: Path | None = None
    nats_tls_key: Path | None = None
    nats_inbox_prefix: str = Field(
        default="_INBOX",
        pattern=r"^_INBOX[A-Za-z0-9_-]*$",
        description="First token of the subjects that answers come to; a user of its own may hear no other's.",
    )
    connect_within_s: float = Field(default=5.0, gt=0, description="How long a client tries to connect at first.")

    prefix: str = Field(default="mesh", description="First tokens of every subject; the streams are named after it.")
    replicas: int = Field(default=1, ge=1, le=5, description="Copies of each stream, when this process creates it.")
    stream_bytes_max: int = Field(default=4 * 2**30, ge=2**20, description="Limit of the stream, when created here.")
    stream_msgs_max: int = Field(default=-1, description="Limit of the stream in messages, -1 for none.")

    ack_wait_s: float = Field(default=6.0, ge=0.5, description="A peer silent for this long loses its tasks to others.")
    limit_lease_s: float = Field(
        default=10.0, ge=0.5, description="A peer silent for this long loses its seats at limited resources to others."
    )
    result_ttl_s: float = Field(default=86_400.0, ge=1, description="How long a result is kept, and its key known.")
    workflow_ttl_s: float = Field(
        default=7 * 86_400.0, ge=1, description="How long the records of a task that waits are kept, from its start."
    )
    hot_wait_s: float = Field(default=5.0, ge=0, description="How long a waiting task stays in memory before it parks.")
    hot_waits_max: int = Field(default=1_000, ge=1, description="Waiting tasks that a peer keeps in memory.")
    wake_again_s: float = Field(default=3_600.0, ge=1, description="Longest time until a parked task is looked at.")
    inbox_max: int = Field(default=1_000, ge=1, description="Proposals that may wait for people.")
    hops_max: int = Field(default=8, ge=1, description="Handoffs in a row.")
    dead_letter_ttl_s: float = Field(default=30 * 86_400.0, ge=1)
    payload_bytes_max: int = Field(default=32 * 2**20, ge=1024, description="Of a payload or a value, encoded.")
    inline_bytes_max: int = Field(
        default=128 * 1024, ge=1024, description="Payloads and values above it are kept as objects, beside the stream."
    )
    objects_bytes_max: int = Field(
        default=2 * 2**30, ge=2**20, description="Limit of the stream of objects, when created here."
    )
    payload_ttl_s: float = Field(
        default=30 * 86_400.0, ge=1, description="How long a payload that is kept as an object may wait for its end."
    )
    grace_s: float = Field(default=20.0, ge=0, description="How long a draining peer lets running tasks finish.")
    bids: bool = Field(default=True, description="Bid by expected delay. Off: whoever is free takes what comes next.")
    beat_s: float = Field(default=2.0, gt=0, description="Interval of presence beats.")
    sweep_s: float = Field(default=30.0, gt=0, description="Mean interval of the search for stranded messages.")
    retry_share: float = Field(
        default=0.2, ge=0, le=1_000, description="Retries a peer makes for each first attempt, beside a few a second."
    )
    queue_max: int = Field(
        default=1_000_000, ge=1, description="Tasks that may wait in a lane of a capability that sets no `queue_max`."
    )
    full_at: float = Field(default=0.9, gt=0, le=1, description="Share of the stream's limit at which clients stop.")

    events: Literal["off", "notable", "all"] = Field(
        default="all", description="What is published of tasks and peers. `notable`: not that a task ended or waits."
    )
    events_bytes_max: int = Field(
        default=256 * 2**20, ge=2**20, description="Limit of the stream of events, when created here; the oldest go."
    )
    events_ttl_s: float = Field(
        default=7 * 86_400.0, ge=1, description="How long events are kept at most, when their stream is created here."
    )

    metrics: bool = Field(default=True, description="Count what tasks come to. Off: only gauges and health are shown.")
    survey_s: float = Field(
        default=10.0,
        gt=0,
        description="How often a peer looks at queues, streams and parks for its gauges of the mesh.",
    )
    http_host: str = Field(default="127.0.0.1", description="Where a peer serves /metrics, /healthz and /readyz.")
    http_port: int = Field(default=0, ge=-1, le=65535, description="0 takes a free port, -1 serves nothing.")
    peer_name: str | None = Field(default=None, description="Start of the peer's id; the host's name if unset.")
    log_level: str = "INFO"
    log_format: Literal["text", "json"] = Field(default="text", description="json: one object a line.")
    traces: Literal["off", "auto", "otlp"] = Field(
        default="auto",
        description="auto: to the process's OpenTelemetry provider, if it has one. otlp: to where OTEL_* say.",
    )

    @cached_property
    def subjects(self) -> Subjects:
        return Subjects(self.prefix)


class InboxSettings(BaseSettings):
    """Who looks after what waits for people; each field is read from `MESH_INBOX_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="MESH_INBOX_", frozen=True, extra="ignore")

    owner: str = Field(default="", description="The team that is called when proposals wait for too long.")


class LLMSettings(BaseSettings):
    """An endpoint that speaks OpenAI's chat completions; each field is read from `MESH_LLM_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="MESH_LLM_", frozen=True, extra="ignore")

    base_url: str | None = Field(default=None, description="As `http://localhost:11434/v1`. Unset: OpenAI's own.")
    api_key: SecretStr | None = Field(default=None, description="Endpoints of your own may need none.")
    model: str | None = Field(default=None, description="The model's name at the endpoint.")
    timeout_s: float = Field(default=120.0, gt=0, description="Longest silence of the endpoint.")
    trace_content: bool = Field(default=False, description="Record prompts and answers in traces, not only their size.")
