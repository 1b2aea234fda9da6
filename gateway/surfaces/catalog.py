"""Every surface whose calls are queued: the one list of their paths."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.openai.payload import Endpoint

PATHS: Mapping[Endpoint, str] = MappingProxyType(
    {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
        "score": "/v1/score",
    }
)
