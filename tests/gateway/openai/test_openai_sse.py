"""Events cut out of bytes, what they carry, messages put together from them, and events of our own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.errors import ApiError
from gateway.openai.sse import DONE, EVENT_BYTES_MOST, Assembler, Chunks, Events, carries_content, chunk_of, data


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(**members: object) -> bytes:
    return event({"id": "c1", "model": "m", "choices": [{"index": 0, "delta": members, "finish_reason": None}]})


@pytest.mark.parametrize(
    "events",
    [
        [b"data: a\n\n", b"data: b\n\n"],
        [b"data: a\r\n\r\n", b"data: b\r\n\r\n"],
        [b"data: a\r\r", b"data: b\r\r", b"data: c\n\n"],
        [b"data: a\r\ndata: b\r\n\r\n", b"data: c\n\n"],
        [b"data: a\n\r\n", b"data: b\r\n\n", b"data: c\n\n"],
        [b": comment\n\n", b"\n\n", b"\ndata: a\n\n"],
        ["data: ü–😀\n\n".encode(), DONE],
    ],
)
def test_events_come_out_whole_however_the_bytes_are_cut(events: list[bytes]) -> None:
    stream = b"".join(events)
    for size in range(1, len(stream) + 1):
        cutter = Events()
        out = [cut for at in range(0, len(stream), size) for cut in cutter.feed(stream[at : at + size])]
        assert out == events
        assert cutter.rest() == b""


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: ", b"x", "ü".encode(), b":"]), max_size=30), st.data()
)
def test_any_chunking_gives_the_same_events_and_loses_no_byte(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    whole = Events()
    expected = (whole.feed(stream), whole.rest())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    cutter = Events()
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        out += cutter.feed(stream[start:end])
    assert (out, cutter.rest()) == expected
    assert b"".join(out) + expected[1] == stream


def test_a_carriage_return_at_the_end_waits_for_what_follows() -> None:
    cutter = Events()
    assert cutter.feed(b"data: a\r\n\r") == []
    assert cutter.feed(b"\ndata: b") == [b"data: a\r\n\r\n"]
    assert cutter.rest() == b"data: b"
    assert cutter.rest() == b""


def test_an_event_may_be_as_long_as_the_cap_and_no_longer() -> None:
    longest = b"data: " + b"x" * (EVENT_BYTES_MOST - 8) + b"\n\n"
    assert Events().feed(longest + longest) == [longest, longest]
    for first, second in ((b"", longest[:-2] + b"x\n\n"), (longest[:-2], b"xxx"), (b": ok\n\n", longest[:-1] * 2)):
        cutter = Events()
        cutter.feed(first)
        with pytest.raises(ApiError) as raised:
            cutter.feed(second)
        assert raised.value.code == "stream_interrupted"


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"data: a b\n\n", b"a b"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data: a\r\n\r\n", b"a"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: error\nid: 1\ndata: a\n\n", b"a"),
        (b"data:\n\n", b""),
        (b": data: a\n\n", None),
        (b"data\n\n", None),
        (b"\n\n", None),
    ],
)
def test_data_is_what_the_data_lines_say(raw: bytes, content: bytes | None) -> None:
    assert data(raw) == content


@pytest.mark.parametrize(
    "raw", [b"data: {\n\n", b"data: 5\n\n", b"data: <html>\n\n", b"data: \xff\n\n", b"data:\n\n"]
)
def test_data_that_is_no_json_object_breaks_the_stream(raw: bytes) -> None:
    for read in (chunk_of, carries_content, Assembler().add):
        with pytest.raises(ApiError) as raised:
            read(raw)
        assert raised.value.code == "stream_interrupted"


@pytest.mark.parametrize(
    ("raw", "carries"),
    [
        (delta(role="assistant", content=""), False),
        (delta(role="assistant", content=None, tool_calls=[]), False),
        (delta(), False),
        (b": ping\n\n", False),
        (event({"choices": []}), False),
        (event({"choices": None, "usage": {"prompt_tokens": 1}}), False),
        (event({"choices": [{"index": 0, "text": ""}]}), False),
        (event({"choices": ["odd", {"delta": "odd"}]}), False),
        (delta(role="assistant", content="x"), True),
        (delta(reasoning="hm"), True),
        (delta(reasoning_content="hm"), True),
        (delta(tool_calls=[{"index": 0}]), True),
        (delta(refusal="no"), True),
        (event({"choices": [{"index": 0, "text": "x"}]}), True),
        (event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), True),
        (event({"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "x"}}]}), True),
        (event({"error": {"message": "m"}}), True),
        (DONE, True),
    ],
)
def test_content_is_what_a_client_would_miss(raw: bytes, carries: bool) -> None:
    assert carries_content(raw) is carries


def test_a_stream_is_put_together_into_one_message() -> None:
    assembler = Assembler()
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    for raw in (
        b": hello\n\n",
        delta(role="assistant", content=""),
        delta(reasoning_content="think"),
        delta(content="Let me "),
        delta(content="look – ü"),
        event({"id": "c1", "choices": [{"index": 1, "delta": {"content": "another choice"}}]}),
        delta(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"sql": "SEL'}}]),
        delta(
            tool_calls=[
                {"index": 1, "function": {"arguments": "{}"}},
                {"index": 0, "function": {"arguments": 'ECT"}'}},
            ]
        ),
        event({"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
    ):
        assembler.add(raw)
    assembler.add(event({"id": "c2", "model": "other", "choices": [], "usage": usage}))
    assembler.add(DONE)
    assert (assembler.id, assembler.model, assembler.finish_reason) == ("c1", "m", "tool_calls")
    assert assembler.usage == usage
    assert assembler.done
    assert assembler.error is None
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"sql": "SELECT"}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert assembler.tool_calls() == calls
    assert assembler.message() == {
        "role": "assistant",
        "content": "Let me look – ü",
        "reasoning_content": "think",
        "tool_calls": calls,
    }


def test_a_stream_that_was_cut_says_so_by_what_it_lacks() -> None:
    assembler = Assembler()
    assembler.add(delta(content="half"))
    assembler.add(event({"error": {"message": "engine died"}}))
    assert (assembler.done, assembler.finish_reason) == (False, None)
    assert assembler.error == {"message": "engine died"}
    assert assembler.message() == {"role": "assistant", "content": "half"}


NAMELESS = {"id": "", "type": "function", "function": {"name": "", "arguments": None}}


def test_odd_chunks_do_not_stop_the_assembler() -> None:
    assembler = Assembler()
    for document in (
        {"id": 5, "model": None, "usage": "none", "choices": "none"},
        {"choices": [{"index": 0, "delta": None, "finish_reason": 5}]},
        {"choices": [{"index": 0, "delta": {"content": 5, "tool_calls": [{"id": 5, "function": "f"}, "x"]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": 5}}]}}]},
    ):
        assembler.add(event(document))
    assert (assembler.id, assembler.model, assembler.usage, assembler.finish_reason) == (None, None, None, None)
    assert assembler.message() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "", "type": "function", "function": {"name": "f", "arguments": None}}, NAMELESS],
    }


@pytest.mark.parametrize(
    ("pieces", "arguments"),
    [
        ([None, '{"a"', ":1}"], '{"a":1}'),
        ([None], None),
        ([{"a": 1}], None),
        (['{"a"', {"a": 1}], None),
    ],
)
def test_arguments_that_are_no_text_are_null(pieces: list[object], arguments: str | None) -> None:
    assembler = Assembler()
    for piece in pieces:
        assembler.add(delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": piece}}]))
    assert [call["function"]["arguments"] for call in assembler.tool_calls()] == [arguments]


def test_what_is_no_list_of_tool_calls_is_one_that_nobody_can_run() -> None:
    assembler = Assembler()
    assembler.add(delta(tool_calls=5))
    assert assembler.tool_calls() == [NAMELESS]


def test_an_answer_of_our_own_reads_as_one_that_an_engine_streamed() -> None:
    chunks = Chunks(id="chatcmpl-1", model="workflow/nl2sql", created=1_700_000_000)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    stream = [
        chunks.role(),
        chunks.content("two "),
        chunks.content('lines\n"ü"'),
        chunks.finish(),
        chunks.usage(usage),
        DONE,
    ]
    assert Events().feed(b"".join(stream)) == stream
    assert [carries_content(raw) for raw in stream] == [False, True, True, True, False, True]
    assembler = Assembler()
    for raw in stream:
        assembler.add(raw)
    assert (assembler.id, assembler.model) == ("chatcmpl-1", "workflow/nl2sql")
    assert (assembler.finish_reason, assembler.usage, assembler.done) == ("stop", usage, True)
    assert assembler.message() == {"role": "assistant", "content": 'two lines\n"ü"'}


def test_our_chunks_pass_the_official_clients_types() -> None:
    chat = pytest.importorskip("openai.types.chat", reason="the openai package is not installed")
    chunks = Chunks(id="i", model="m", created=1)
    usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    for raw in (chunks.role(), chunks.content("x"), chunks.finish("tool_calls"), chunks.usage(usage)):
        chunk = chat.ChatCompletionChunk.model_validate_json(raw[6:], strict=True)
        assert chunk.object == "chat.completion.chunk"
