"""What the operator decides: addresses, limits and patience. Frozen; a value that makes no sense is an error at start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.hosts import check_allowed
from serve.logs import LogFormat, LogLevel


class Settings(BaseModel):
    """Limits of the service; every default is published by `/v1/info`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    # Names besides loopback's that a Host header may have, such as a proxy's; when empty, an address that others reach
    # answers to any name.
    allowed_hosts: tuple[Annotated[str, AfterValidator(check_allowed)], ...] = ()
    writable: bool = False  # take labels to add and to delete
    keys: Path | None = None  # who may do what (serve.keys); None: whoever reaches the address may do everything that is on
    anonymous_read: bool = False  # with keys: searching needs none
    threads: int | None = Field(default=None, ge=1, le=4096)  # None: max_inflight + 32, so that 429 and probes get a thread

    max_body_bytes: int = Field(default=2_000_000, ge=1)
    max_json_depth: int = Field(default=32, ge=1, le=256)
    max_number_digits: int = Field(default=30, ge=1)
    max_queries: int = Field(default=64, ge=1)
    max_inputs: int = Field(default=2048, ge=1)  # of one request for embeddings, or documents to rerank; OpenAI's limit
    max_text_chars: int = Field(default=32_768, ge=1)
    max_top_k: int = Field(default=1000, ge=1)
    max_candidates: int = Field(default=2048, ge=1)
    min_temperature: float = Field(default=1e-4, gt=0)  # e^{1/τ} must stay inside float32's exponents once shifted
    max_temperature: float = Field(default=100.0, gt=0)
    min_diversity: float = Field(default=1e-3, gt=0)
    max_diversity: float = Field(default=1e3, gt=0)
    max_diversified: int = Field(default=512, ge=1)  # candidates of a diverse answer, whose every pair is compared
    max_labels: int = Field(default=1000, ge=1, le=1000)  # of one write; what a record of the log may hold
    max_excluded: int = Field(default=1000, ge=0)

    max_inflight: int = Field(default=256, ge=1)
    batch_queries: int = Field(default=64, ge=1)
    batch_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    deadline_ms: int = Field(default=2000, ge=1)
    max_deadline_ms: int = Field(default=30_000, ge=1)
    drain_s: int = Field(default=30, ge=1)
    client_timeout_s: float = Field(default=10.0, gt=0)  # for a whole request to arrive; later gets 408

    engine: Literal["local", "ray"] = "local"
    shards: int = Field(default=1, ge=1, le=1024)
    replicas: int = Field(default=1, ge=1, le=8)  # copies of each shard
    shard_cpus: float = Field(default=1.0, gt=0)  # that each copy is given
    shard_gpus: float = Field(default=0.0, ge=0)  # the same
    ray_address: str | None = None  # HOST:PORT of a cluster; None: one of our own, on this machine

    admin_host: str = "127.0.0.1"
    admin_port: int | None = Field(default=None, ge=0, le=65535)  # None: no admin listener
    watchdog_s: float = Field(default=30.0, gt=0)  # at one batch for longer: stuck
    log_format: LogFormat = "text"
    log_level: LogLevel = "warning"
    otel: str | None = None  # the OTLP endpoint that traces are sent to

    @property
    def pool(self) -> int:
        """Return the number of request threads."""
        return self.threads or self.max_inflight + 32

    def limits(self) -> dict[str, float]:
        """Return what a client must know to stay welcome."""
        return {
            "body_bytes": self.max_body_bytes,
            "queries": self.max_queries,
            "inputs": self.max_inputs,
            "text_chars": self.max_text_chars,
            "top_k": self.max_top_k,
            "candidates": self.max_candidates,
            "diversified": self.max_diversified,
            "exclude_ids": self.max_excluded,
            "labels": self.max_labels,
            "inflight": self.max_inflight,
            "timeout_ms": self.max_deadline_ms,
            "default_timeout_ms": self.deadline_ms,
        }
