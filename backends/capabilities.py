"""What a server can do, as far as it can be found by asking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Ordering = Literal["header", "body", "none"]

SURFACES: Mapping[str, str] = MappingProxyType(
    {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
        "score": "/v1/score",
        "tokenize": "/tokenize",
    }
)
"""What a server may be spoken to by, and the path that tells that it has it."""
HEADER_SINCE = (0, 32)
"""The version of vLLM from which on `X-Vllm-Priority` is relied upon; an older one is told in the body."""
_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where a server publishes what its KV cache holds, as it names the place; missed events are had at `replay`."""

    endpoint: str
    replay: str = ""
    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """None, and what is empty, could not be told.

    `longest` bounds a prompt and its answer together. `kv_blocks` of `block_size` tokens are its KV memory.
    `token_details`: it says how many tokens of a prompt were cached. `priority`: it runs the urgent first. `sleeps`:
    it can be put to sleep over HTTP. `silent`: it left off answering, so that less is told than may have been before.
    `surfaces` are the names of those of SURFACES that it has.
    """

    version: str = ""
    models: tuple[str, ...] = ()
    longest: int | None = None
    block_size: int | None = None
    kv_blocks: int | None = None
    prefix_caching: bool | None = None
    kv_events: tuple[KvSource, ...] = ()
    token_details: bool | None = None
    priority: bool | None = None
    sleeps: bool = False
    surfaces: frozenset[str] | None = None
    silent: bool = False

    @property
    def kv_tokens(self) -> int | None:
        """The tokens that its KV memory has room for."""
        if self.block_size is None or self.kv_blocks is None:
            return None
        return self.block_size * self.kv_blocks

    @property
    def ordering(self) -> Ordering:
        """How it is told the order of its requests. A server that does not know the header passes over it."""
        if self.priority is False:
            return "none"
        release = _RELEASE.match(self.version)
        if release is not None and (int(release[1]), int(release[2])) < HEADER_SINCE:
            return "body"
        return "header"
