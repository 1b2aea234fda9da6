"""Stands in for LiteLLM where tests run without it: its functions, over the providers' own libraries.

What it answers with and raises is made as LiteLLM's is: pydantic objects, and errors that lead down to the HTTP
client's. `make test-providers` runs with the real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

Client = TypeVar("Client", "AsyncAnthropic", "AsyncOpenAI")
_clients: list[AsyncAnthropic | AsyncOpenAI] = []

suppress_debug_info = disable_streaming_logging = disable_hf_tokenizer_download = user_url_validation = False


def _openai(arguments: dict[str, object]) -> AsyncOpenAI:
    """A client for an account, whose arguments are taken out of those of the call."""
    arguments["model"] = str(arguments["model"]).partition("/")[2]
    base, key = str(arguments.pop("api_base")), str(arguments.pop("api_key"))
    from openai import AsyncOpenAI  # on first use, as the processes of most tests need none of it

    assert (arguments.pop("num_retries"), arguments.pop("max_retries")) == (0, 0)
    return _kept(AsyncOpenAI(base_url=base, api_key=key, max_retries=0))


def _kept(client: Client) -> Client:
    _clients.append(client)
    return client


async def close() -> None:
    """Close what was opened. Needed where a test goes on after it; LiteLLM has none."""
    for client in _clients:
        await client.close()
    _clients.clear()


async def acompletion(**arguments: object) -> object:
    return await _openai(arguments).chat.completions.create(**arguments)  # type: ignore[call-overload]


async def atext_completion(**arguments: object) -> object:
    return await _openai(arguments).completions.create(**arguments)  # type: ignore[call-overload]


async def aresponses(**arguments: object) -> object:
    return await _openai(arguments).responses.create(**arguments)  # type: ignore[call-overload]


async def aembedding(**arguments: object) -> object:
    return await _openai(arguments).embeddings.create(**arguments)  # type: ignore[arg-type]


async def arerank(**arguments: object) -> object:
    return await _openai(arguments).post("/rerank", cast_to=object, body=arguments)


async def anthropic_messages(**arguments: object) -> object:
    base = str(arguments["api_base"]).removesuffix("/v1")
    _openai(arguments)
    from anthropic import AsyncAnthropic

    client = _kept(AsyncAnthropic(base_url=base, api_key="k", max_retries=0))
    return await client.messages.create(**arguments)  # type: ignore[call-overload]
