"""Failures on demand, seen from the client's end of the connection."""

from __future__ import annotations

import asyncio
import json
import logging
from urllib.parse import urlsplit

import aiohttp
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import EmulatedServer, serve

FAULTY = EmulatedOptions(time_scale=1000.0, faults=True)
BODY = {"prompt": "<<echo:abcd>>", "max_tokens": 8}


async def ask(
    server: EmulatedServer, fault: str, *, stream: bool = True, path: str = "/v1/completions"
) -> tuple[int, str]:
    """Status and body; raises what aiohttp raises when the connection breaks."""
    headers = {"X-Emulated-Fault": fault}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + path, json=BODY | {"stream": stream}, headers=headers) as response,
    ):
        return response.status, await response.text()


async def begin(server: EmulatedServer, fault: str, stream: bool) -> bytes:
    """What arrives before nothing more does; then the client leaves."""
    async with aiohttp.ClientSession() as session:
        headers = {"X-Emulated-Fault": fault}
        async with session.post(
            server.url + "/v1/completions", json=BODY | {"stream": stream}, headers=headers
        ) as response:
            got = b""
            wanted = 3 if stream else 1
            while got.count(b"\n\n") < wanted and (stream or not got):
                got += await response.content.readany()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await response.content.readany()
            return got


async def drain(content: aiohttp.StreamReader, into: bytearray) -> None:
    async for chunk in content.iter_any():
        into += chunk


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("refuse", 503, "Service Unavailable"),
        ("status=500", 500, "Internal Server Error"),
        ("status=429", 429, "Too Many Requests"),
        ("status=599", 599, "Unknown"),
    ],
)
async def test_an_engine_that_refuses_says_so_in_an_error_body(fault: str, status: int, kind: str) -> None:
    async with serve(FAULTY) as server:
        got, text = await ask(server, fault, path="/v1/chat/completions")
        assert got == status
        assert json.loads(text)["error"]["type"] == kind
        assert json.loads(text)["error"]["code"] == status


async def test_an_engine_that_answers_with_a_web_page_says_200() -> None:
    async with serve(FAULTY) as server:
        status, text = await ask(server, "html")
        assert (status, text[:6]) == (200, "<html>")


async def test_an_engine_that_hangs_takes_the_request_and_never_answers() -> None:
    async with serve(FAULTY) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(server, "hang")
        assert (await ask(server, "die_after=99"))[0] == 200


async def test_an_engine_that_dies_before_its_answer_sends_no_byte(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FAULTY) as server:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(server, "die_before")
    assert not caplog.records


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_dies_within_its_answer_cuts_it(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FAULTY) as server, aiohttp.ClientSession() as session:
        headers = {"X-Emulated-Fault": "die_after=3"}
        got = bytearray()
        async with session.post(
            server.url + "/v1/completions", json=BODY | {"stream": stream}, headers=headers
        ) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await drain(response.content, got)
        assert got.count(b"\n\n") == 3 if stream else got.startswith(b"{")
        while not server.engine.idle:
            await ask(server, "refuse")
    assert not caplog.records


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_stalls_within_its_answer_keeps_the_connection(stream: bool) -> None:
    async with serve(FAULTY) as server:
        got = await begin(server, "stall_after=3", stream)
        assert got.count(b"\n\n") == 3 if stream else got.startswith(b"{")


async def test_garbage_is_one_line_in_a_stream_and_the_rest_of_a_body() -> None:
    async with serve(FAULTY) as server:
        _, text = await ask(server, "garbage_after=2")
        events = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
        whole = (await ask(server, "garbage_after=0", stream=False))[1]
    assert len(events) == 8 + 1 + 2
    with pytest.raises(json.JSONDecodeError):
        json.loads(events[2])
    assert [json.loads(event)["choices"][0]["text"] for event in (*events[:2], *events[3:9])] == ["abcd"] * 8
    assert events[-1] == "[DONE]"
    with pytest.raises(json.JSONDecodeError):
        json.loads(whole)


@pytest.mark.parametrize(
    "fault",
    [
        "explode",
        "die_after",
        "die_after=-1",
        "die_after=x",
        "refuse=3",
        "status=204",
        "",
        "hang;retry_after=1",
        "status=429;retry_after=soon",
    ],
)
async def test_a_fault_that_does_not_exist_is_a_bad_request(fault: str) -> None:
    async with serve(FAULTY) as server:
        status, text = await ask(server, fault)
        assert status == 400
        assert "known: refuse, hang" in json.loads(text)["error"]["message"]


async def test_faults_are_off_unless_they_are_allowed() -> None:
    async with serve(EmulatedOptions(time_scale=1000.0), on_exit=pytest.fail) as server:
        status, text = await ask(server, "refuse", stream=False)
        assert (status, json.loads(text)["choices"][0]["text"]) == (200, "abcd" * 8)
        assert (await ask(server, "refuse", path="/emulated/exit"))[0] == 404


async def test_a_server_that_stops_cuts_its_streams(caplog: pytest.LogCaptureFixture) -> None:
    async with aiohttp.ClientSession() as session:
        async with serve(EmulatedOptions()) as server:
            body = {"prompt": "x", "max_tokens": 20000, "stream": True}
            response = await session.post(server.url + "/v1/completions", json=body)
            await response.content.readany()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert not caplog.records


async def test_a_client_that_leaves_within_its_own_body_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    async with serve(FAULTY) as server:
        address = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n{"
        )
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.close()
        await writer.wait_closed()
        assert (await ask(server, "die_after=99"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
