"""What of a request reaches LiteLLM: the members of each surface's body by name, kinds of tools, a few headers.

LiteLLM takes its own settings (addresses, keys, models to fall back to, callbacks, made-up answers) as arguments
beside those of the request. So a body is picked from and never passed on: what is not listed here cannot be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

SETTINGS: Final = "CORTEX_PROVIDER"
"""The variable with what LiteLLM's process is to know, which has secrets in it: `token` and `arguments`."""
HEADERS: Final = ("anthropic-beta", "traceparent", "tracestate")
"""What of a request's headers goes on to the provider."""
TOOLS: Final = (
    *("function", "custom", "namespace", "tool_search", "web_search", "web_fetch", "local_shell", "shell"),
    *("apply_patch", "bash", "text_editor", "memory", "computer"),
)
"""Beginnings of the kinds of tools that run at the client, or read the open web at the provider. Others run models
and servers that the client picks, or read what belongs to the account and with it to every tenant."""

_SAMPLING: Final = ("temperature", "top_p", "stream", "user")
_PENALTIES: Final = ("stop", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "n", "stream_options")


class Unfit(Exception):
    """A body that LiteLLM is not asked with; `param` is the member at fault."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One route: LiteLLM's `function` behind it, and the members of its body. Those in `needed` must be there."""

    name: str
    function: str
    needed: tuple[str, ...]
    members: tuple[str, ...]
    counts: bool = False
    """Whether a stream tells its usage only where that is asked for."""

    def arguments(self, document: object, fixed: Mapping[str, object]) -> Json:
        """What the function is called with; `fixed` is the configuration's and wins. Raises Unfit."""
        if not isinstance(document, dict):
            raise Unfit("the body must be a JSON object", None)
        for name in self.needed:
            if document.get(name) is None:
                raise Unfit(f"{name}: missing", name)
        _check_tools(document.get("tools"))
        wanted = (*self.needed, *self.members)
        picked = {name: document[name] for name in wanted if document.get(name) is not None}
        if self.name == "messages" and (user := _user(document.get("metadata"))):
            picked["metadata"] = {"user_id": user}
        if self.counts and picked.get("stream"):
            picked["stream_options"] = {"include_usage": True}
        return {**picked, **fixed}


def wants_usage(document: Json) -> bool:
    """Whether the client wants an event of its own for the usage."""
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _check_tools(tools: object, within: str = "tools") -> None:
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type", "custom") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or not kind.startswith(TOOLS):
            name = f"{within}[{index}].type"
            raise Unfit(f"{name}: tools of this kind are not passed on to a hosted model", name)
        _check_tools(tool.get("tools"), f"{within}[{index}].tools")  # those of a namespace


def _user(metadata: object) -> str:
    """The one member of a Messages request's metadata that a provider is told."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return user if isinstance(user, str) else ""


CHAT: Final = Surface(
    name="chat",
    function="acompletion",
    needed=("messages",),
    members=(
        *(*_SAMPLING, *_PENALTIES, "max_tokens", "max_completion_tokens", "top_k", "response_format", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "modalities"),
        *("audio", "prediction", "reasoning_effort", "thinking", "verbosity", "service_tier", "web_search_options"),
        *("prompt_cache_key", "safety_identifier"),
    ),
    counts=True,
)
COMPLETIONS: Final = Surface(
    name="completions",
    function="atext_completion",
    needed=("prompt",),
    members=(*_SAMPLING, *_PENALTIES, "max_tokens", "suffix", "logprobs", "echo", "best_of"),
    counts=True,
)
RESPONSES: Final = Surface(
    name="responses",
    function="aresponses",
    needed=("input",),
    members=(
        *(*_SAMPLING, "stream_options", "instructions", "include", "max_output_tokens", "max_tool_calls"),
        *("parallel_tool_calls", "previous_response_id", "prompt_cache_key", "reasoning", "safety_identifier"),
        *("service_tier", "store", "text", "tool_choice", "tools", "top_logprobs", "truncation"),
    ),
)
MESSAGES: Final = Surface(
    name="messages",
    function="anthropic_messages",
    needed=("messages", "max_tokens"),
    members=(
        *("stream", "system", "stop_sequences", "temperature", "top_k", "top_p", "thinking", "tool_choice", "tools"),
        *("service_tier", "output_config", "output_format", "context_management"),
    ),
)
EMBEDDINGS: Final = Surface(
    name="embeddings",
    function="aembedding",
    needed=("input",),
    members=("dimensions", "encoding_format", "user", "input_type"),
)
RERANK: Final = Surface(
    name="rerank",
    function="arerank",
    needed=("query", "documents"),
    members=("top_n", "rank_fields", "return_documents", "max_chunks_per_doc", "max_tokens_per_doc"),
)

SURFACES: Final[Mapping[str, Surface]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
}
_WRITES: Final = ("chat", "completions", "responses", "messages")
_OF_MODE: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("chat", "completion", "responses"), _WRITES),
    "embedding": ("embeddings",),
    "rerank": ("rerank",),
}


def surfaces_of(mode: object) -> tuple[str, ...]:
    """The surfaces of a model by what LiteLLM's list says that it is for; all of them for one that is not listed."""
    every = tuple(surface.name for surface in SURFACES.values())
    return _OF_MODE.get(mode, every) if isinstance(mode, str) else every
