"""What can be configured of a pool's engines, by their kind. `docs/configuration.md` says what each key means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from gateway.fields import (
    Bytes,
    BytesOrZero,
    Count,
    ExistingFileOrNone,
    FilePath,
    FilePathOrNone,
    Flag,
    List,
    Map,
    Named,
    Number,
    Params,
    Part,
    Seconds,
    Text,
    Url,
    Whole,
)
from policies.dialects import DIALECTS, dialect_called

_OURS = frozenset(
    (
        *("api_base", "api_key", "base_url", "model", "messages", "input", "prompt", "stream", "stream_options"),
        *("num_retries", "max_retries", "fallbacks", "mock_response"),
    )
)
"""What of LiteLLM's arguments has a key of its own, is the caller's, or would do what the gateway does."""
EmulatedSurface = Literal["chat", "completions", "responses", "messages", "embeddings", "rerank", "tokenize"]
MEMORY_LEAST = 16_000_000  # with half as much, a join of a small table already fails


def _dialect(name: str) -> str:
    dialect = dialect_called(name)
    if dialect is None:
        raise ValueError(f"must be one of {', '.join(DIALECTS)}")
    return dialect


Dialect = Annotated[str, AfterValidator(_dialect)]


class Launch(Part):
    """How the gateway starts a pool's servers."""

    command: Annotated[List[Text], Field(min_length=1)] = ("vllm", "serve")
    model: Text | None = None
    args: List[Text] = ()
    env: Map[str] = Field(default_factory=dict, repr=False)
    gpus: Annotated[Number, Field(ge=0)] = 1.0
    devices: List[Text] = ()
    ready: Seconds = 600.0
    stagger: Seconds | None = None
    grace: Seconds = 10.0
    asleep: Annotated[Whole, Field(ge=0)] = 0
    logs: FilePathOrNone = None

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a share of one GPU, such as 0.5, or a whole number of them")
        return gpus


class Vllm(Part):
    """Servers that speak OpenAI's API: those that run elsewhere, or those that the gateway starts."""

    name: Literal["vllm"]
    attach: Annotated[List[Url], Field(min_length=1)] | None = None
    launch: Launch | None = None
    api_key: Text | None = Field(default=None, repr=False)
    priority: Flag = True
    salt: Flag = True
    kv_events: Flag = False
    tokenize: Seconds = 0.05

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.attach is None) == (self.launch is None):
            raise ValueError("needs attach, addresses of servers that run elsewhere, or launch, and not both")
        return self


class Emulated(Part):
    """Emulated engines, started by the gateway."""

    name: Literal["emulated"]
    script: ExistingFileOrNone = None
    num_gpu_blocks: Count = 2048
    block_size: Count = 16
    max_num_seqs: Count = 64
    max_model_len: Annotated[Whole, Field(ge=2)] = 32768
    max_num_batched_tokens: Count = 2048
    prefill_rate: Annotated[Number, Field(gt=0)] = 8000.0
    decode_step: Seconds = 0.01
    profile: ExistingFileOrNone = None
    time_scale: Annotated[Number, Field(gt=0)] = 1.0
    seed: Whole = 0
    surfaces: Annotated[List[EmulatedSurface], Field(min_length=1)] = get_args(EmulatedSurface)
    faults: Flag = False
    kv_events: Flag = False
    tokenize: Seconds = 0.05


class DuckDb(Part):
    """SQL worker processes over read-only DuckDB files."""

    name: Literal["duckdb"]
    databases: Annotated[Named[FilePath], Field(min_length=1)]
    timeout: Seconds = 2.0
    memory: Bytes = 512_000_000
    max_rows: Count = 1000
    max_bytes: Bytes = 1_000_000
    cache: BytesOrZero = 64_000_000
    samples: Annotated[Whole, Field(ge=0, le=20)] = 0
    max_threads: Annotated[Whole, Field(ge=1, le=256)] = 1
    ahead: Annotated[Whole, Field(ge=0)] = 2
    dialect: Dialect = "duckdb"
    max_stream_rows: Count = 10_000_000
    max_stream_bytes: Bytes = 1_000_000_000
    stream_timeout: Seconds = 60.0
    stream_stall: Seconds = 4.0

    @field_validator("memory")
    @classmethod
    def _enough(cls, memory: int) -> int:
        if memory < MEMORY_LEAST:
            raise ValueError(f"must be at least {MEMORY_LEAST // 10**6}MB")
        return memory


class Account(Part):
    """An account at a provider: where to ask, with which key, and LiteLLM's arguments besides."""

    api_base: Text | None = None
    api_key: Text | None = Field(default=None, repr=False)
    params: Params = Field(default={}, validate_default=True, repr=False)

    @field_validator("api_base")
    @classmethod
    def _address(cls, base: str | None) -> str | None:
        if base is not None and not re.fullmatch(r"https?://[^\s/?#][^\s]*", base):
            raise ValueError("must be an address such as https://api.openai.com/v1")
        return base

    @field_validator("params")
    @classmethod
    def _not_ours(cls, params: Mapping[str, object]) -> Mapping[str, object]:
        if taken := params.keys() & _OURS:
            raise ValueError(f"{min(taken)} cannot be set here")
        return params

    def arguments(self) -> dict[str, object]:
        """Those of LiteLLM's that it sets."""
        places = {"api_base": self.api_base, "api_key": self.api_key}
        return {**self.params, **{name: value for name, value in places.items() if value is not None}}


class Litellm(Account):
    """Models that providers host, each account an engine; what the accounts have in common stands beside them."""

    name: Literal["litellm"]
    model: Text
    accounts: Annotated[List[Account], Field(min_length=1)] = Field(default_factory=lambda: (Account(),))
    python: Text | None = None
    ready: Seconds = 60.0

    def calls(self) -> list[dict[str, object]]:
        """LiteLLM's arguments for each account."""
        return [{**self.arguments(), **account.arguments(), "model": self.model} for account in self.accounts]


Backend = Annotated[Vllm | Emulated | DuckDb | Litellm, Field(discriminator="name")]


def places(backend: Vllm | Emulated | DuckDb | Litellm) -> int:
    """How many engines are named in the configuration itself; 0 where it names none."""
    if isinstance(backend, Litellm):
        return len(backend.accounts)
    return len(backend.attach or ()) if isinstance(backend, Vllm) else 0
