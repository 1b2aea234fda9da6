"""Lets an engine that cannot write SQL choose what it says: its requests carry the texts that an answer may be.

For vLLM that is `structured_outputs: {"choice": [...]}`, which an agent would pass as `extra_body`. The texts are the
script's: for a statement all that are tried for the question, right or wrong; for a verdict the one that is due. What
a model of random weights picks is chance, and at temperature 0 the same again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx2
from openai import DEFAULT_CONNECTION_LIMITS, DefaultAsyncHttpxClient

from examples.nl2sql.questions import Question
from examples.nl2sql.script import APPROVAL, TASKS


class Choosing(httpx2.AsyncHTTPTransport):
    """Adds their texts to chat requests that ask one of the questions, and passes everything else on as it is."""

    def __init__(self, questions: Iterable[Question]) -> None:
        super().__init__(limits=DEFAULT_CONNECTION_LIMITS)
        self._questions = {question.text: question for question in questions}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/chat/completions"):
            request = self._with_choices(request)
        return await super().handle_async_request(request)

    def _with_choices(self, request: httpx2.Request) -> httpx2.Request:
        document = json.loads(request.content)
        prompt = document["messages"][-1]["content"]
        question = self._questions.get(prompt.rpartition("Question:")[2].strip())
        if question is None:
            return request
        kept = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        body = document | extra_body(question, prompt)
        return httpx2.Request(request.method, request.url, headers=kept, json=body, extensions=request.extensions)


def client(questions: Iterable[Question]) -> DefaultAsyncHttpxClient:
    """What the official client speaks HTTP with (`http_client`) so that its requests carry texts to choose from."""
    return DefaultAsyncHttpxClient(transport=Choosing(questions), trust_env=False)


def extra_body(question: Question, prompt: str) -> Mapping[str, Any]:
    """The member that makes an engine choose."""
    return {"structured_outputs": {"choice": choices(question, prompt)}}


def choices(question: Question, prompt: str) -> list[str]:
    """What may be said to a prompt: calls with any statement but the failed one, or the verdict that is due."""
    quoted = {sql for sql in _statements(question) if f"\n```sql\n{sql}\n```\n" in prompt}
    if TASKS["verify"] in prompt:
        due = [f"WRONG: {one.quote}" for one in question.mistakes if one.kind == "rows" and one.sql in quoted]
        return due or [APPROVAL]
    others = [sql for sql in _statements(question) if sql not in quoted]
    return [_call(sql) for sql in others or quoted]


def _statements(question: Question) -> list[str]:
    return [question.gold, *(mistake.sql for mistake in question.mistakes)]


def _call(sql: str) -> str:
    """A tool call as the parser `hermes` reads it."""
    arguments = json.dumps({"name": "execute_sql", "arguments": {"sql": sql}}, ensure_ascii=False)
    return f"<tool_call>{arguments}</tool_call>"
