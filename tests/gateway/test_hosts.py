"""Without keys nobody asks by a name, or from a page, that others may have made lead here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.hosts import Hosts
from gateway.openai.errors import ApiError
from tests.gateway.rawhttp import connected, request
from tests.gateway.shop import COUNT, warehouse
from tests.gateway.support import Running, error_of, running, settled, written

KEYS = {"keys": [{"key": "a", "tenant": "one"}]}

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("hosts")
    server = {"port": 0, "allowed_hosts": ["gateway", "[2001:db8::7]"]}
    async with running(folder, written({"warehouse": warehouse(folder)}, server=server), report_every=60) as up:
        yield up
        await settled(up.gateway)


async def sql(up: Running, **headers: str) -> tuple[int, Any]:
    reply = await up.http.post("/v1/sql", content=f'{{"sql": "{COUNT}"}}', headers=headers)
    return reply.status_code, reply.json() if reply.status_code == 200 else error_of(reply)["param"]


@module_loop
@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:8080", "192.0.2.7", "gateway:80"]
)
async def test_its_own_names_addresses_and_those_that_are_configured_are_answered(up: Running, host: str) -> None:
    assert (await sql(up, Host=host))[0] == 200


@module_loop
@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8080", "localhost.evil.com", "127.0.0.1.evil.com", "gateway.evil.com", "", "a b"]
)
async def test_a_name_that_can_lead_anywhere_is_misdirected(up: Running, host: str) -> None:
    assert await sql(up, Host=host) == (421, "Host")
    for path in ("/v1/models", "/v1/state/topic", "/w/w/v1/models"):
        assert (await up.http.get(path, headers={"Host": host})).status_code == 421
    assert (await up.http.get("/health", headers={"Host": host})).status_code == 200
    assert (await up.http.get("/metrics", headers={"Host": host})).status_code == 200


@module_loop
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://gateway", 200),
        ("http://198.51.100.9:8080", 200),  # that page is of this very server
        ("http://198.51.100.9", 403),
        ("http://192.0.2.7", 403),
        ("http://evil.com", 403),
        ("http://localhost.evil.com", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_only_pages_of_this_machine_may_ask(up: Running, origin: str, status: int) -> None:
    headers = {"Host": "198.51.100.9:8080", "Origin": origin, "Content-Type": "text/plain"}
    assert (await sql(up, **headers))[0] == status


async def test_whoever_has_a_key_may_ask_by_any_name(tmp_path: Path) -> None:
    text = written({"warehouse": warehouse(tmp_path)}, auth=KEYS)
    async with running(tmp_path, text, report_every=60) as up:
        headers = {"Host": "sql.example.org", "Origin": "https://app.example.org", "Authorization": "Bearer a"}
        assert (await sql(up, **headers))[0] == 200


@module_loop
async def test_a_request_that_names_no_host_is_no_browsers(up: Running) -> None:
    async with connected(up.url) as raw:
        await raw.send(request({"sql": COUNT}, path="/v1/sql", host=""))
        assert (await raw.reply()).status == 200


def test_a_name_from_outside_is_shown_on_one_line_and_cut() -> None:
    for host, origin in ((b"\xff\n" + b"x" * 500, None), (b"localhost", b"\xff\n" + b"x" * 500)):
        with pytest.raises(ApiError) as raised:
            Hosts([]).check(host, origin)
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 300
