"""The prompt of a request as bytes, and how the tools ended that went before it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from gateway.openai.payload import Payload, parse
from gateway.openai.prompt import PromptView, prompt_view, text_of, told

SYSTEM = {"role": "system", "content": "Write SQL."}
ASK = {"role": "user", "content": "How many?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "execute_sql", "arguments": '{"sql": "SELECT 1"}'}}
    ],
}
TOOLS = [{"type": "function", "function": {"name": "execute_sql", "parameters": {}}}]


def chat(*messages: dict[str, Any], **more: object) -> Payload:
    return parse(json.dumps({"model": "m", "messages": messages, **more}).encode(), endpoint="chat")


def completion(prompt: object) -> PromptView:
    return prompt_view(parse(json.dumps({"model": "m", "prompt": prompt}).encode(), endpoint="completions"))


def tool(content: object) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


def test_the_view_holds_tools_roles_contents_and_calls_in_order() -> None:
    view = prompt_view(chat(SYSTEM, ASK, CALL, tool("42"), tools=TOOLS))
    text = view.text_bytes.decode()
    pieces = ['"name":"execute_sql","parameters"', "<system>\nWrite SQL.", "<user>\nHow many?"]
    pieces += ["<assistant>\n", "SELECT 1", "<tool>\n42"]
    places = [text.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert "call_1" not in text


def test_a_conversation_that_goes_on_begins_with_the_same_bytes() -> None:
    turns: list[dict[str, Any]] = [SYSTEM, ASK, CALL, tool("42"), {"role": "user", "content": "And – ü?"}]
    views = [prompt_view(chat(*turns[:count], tools=TOOLS)).text_bytes for count in range(1, 6)]
    for shorter, longer in pairwise(views):
        assert longer.startswith(shorter)
        assert longer != shorter


def test_prompts_part_where_their_texts_do() -> None:
    one = prompt_view(chat(SYSTEM, {"role": "user", "content": "same start, A"})).text_bytes
    two = prompt_view(chat(SYSTEM, {"role": "user", "content": "same start, B"})).text_bytes
    assert one[:-1] == two[:-1]
    assert one != two
    assert prompt_view(chat(ASK)).text_bytes != prompt_view(chat(ASK, tools=TOOLS)).text_bytes
    other_role = {"role": "assistant", "content": ASK["content"]}
    assert prompt_view(chat(ASK)).text_bytes != prompt_view(chat(other_role)).text_bytes


def test_text_in_parts_is_seen_as_the_same_text() -> None:
    parts = [{"type": "text", "text": "How "}, "many?"]
    assert prompt_view(chat({"role": "user", "content": parts})) == prompt_view(chat(ASK))


def test_the_text_of_a_content_is_its_text_parts_joined() -> None:
    assert text_of("a") == text_of([{"type": "text", "text": "a"}]) == "a"
    assert text_of(["a", {"type": "text", "text": "b"}]) == "ab"
    assert text_of(None) == text_of([]) == ""


def test_an_image_counts_by_its_digest_and_not_by_its_bytes() -> None:
    def picture(data: str) -> PromptView:
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return prompt_view(chat({"role": "user", "content": [part]}))

    assert picture("A" * 100_000).tokens < 20
    assert picture("A" * 100_000) == picture("A" * 100_000)
    assert picture("A" * 100_000) != picture("B" * 100_000)


@pytest.mark.parametrize("content", [None, 5, {"text": 5}, [None, 5, []], [], ""])
def test_odd_contents_and_calls_are_left_to_the_engine(content: object) -> None:
    odd = {"role": "assistant", "content": content, "tool_calls": ["x", {"function": 5}]}
    assert prompt_view(chat(odd, {**odd, "tool_calls": "y"})).tokens > 0


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [
        ("", b"", 0),
        ("abcd", b"abcd", 1),
        ("abcdé", "abcdé".encode(), 2),
        (["abc", "def"], b"abcdef", 2),
        ([1, 2, 3], b"\1\0\0\0\2\0\0\0\3\0\0\0", 3),
        ([[1], [2, 3]], b"\1\0\0\0\2\0\0\0\3\0\0\0", 3),
    ],
)
def test_a_completions_prompt_is_its_text_or_four_bytes_a_token(prompt: object, text: bytes, tokens: int) -> None:
    assert completion(prompt) == PromptView(text, tokens)


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        ('{"error": {"message": "no such column"}}', "error"),
        ('{"error": "no such column", "rows": []}', "error"),
        ("Error: no such table", "error"),
        ("error: no such table", "error"),
        ("\n ERROR : no such table", "error"),
        ('Binder Error: Referenced column "revenu" not found', "error"),
        ([{"type": "text", "text": "Error: in "}, {"type": "text", "text": "parts"}], "error"),
        ('{"rows": []}', "empty"),
        ('{"rows": [], "error": null}', "empty"),
        ('{"columns": ["a"], "row_count": 0}', "empty"),
        (" []", "empty"),
        ('{"rows": [[1]], "row_count": 1}', "ok"),
        ("[1]", "ok"),
        ('{"answer": 42}', "ok"),
        ("{not json", "ok"),
        ("42", "ok"),
        ("errors were found: 0", "ok"),
        ("The error: none", "ok"),
        ("", "ok"),
        (None, "ok"),
        ('{"rows": [' + "[1]," * 50_000 + "[1]]}", "ok"),
    ],
)
def test_the_tool_message_tells_how_the_tool_ended(content: object, ending: str) -> None:
    assert told(chat(ASK, CALL, tool(content))) == ending


def test_of_several_tools_one_error_counts_and_emptiness_only_when_all_are_empty() -> None:
    assert told(chat(ASK, CALL, tool("[]"), tool("Error: x"), tool("[1]"))) == "error"
    assert told(chat(ASK, CALL, tool("[]"), tool("[1]"))) == "ok"
    assert told(chat(ASK, CALL, tool("[]"), tool("[]"))) == "empty"


def test_only_tools_that_ran_just_before_are_told_of() -> None:
    assert told(chat(ASK)) is None
    assert told(chat(ASK, CALL, tool("Error: x"), CALL, tool("[1]"))) == "ok"
    assert told(chat(ASK, CALL, tool("Error: x"), ASK)) is None
    assert told(parse(b'{"model": "m", "prompt": "x"}', endpoint="completions")) is None
