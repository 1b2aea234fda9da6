"""The commands that look at a gateway and turn its wheels: what they do, what they print, and what they exit with."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

import orjson
import pytest
import pytest_asyncio

from backends.emulated.options import EmulatedOptions
from backends.emulated.server import serve
from gateway.cli import main
from gateway.terminal import client
from policies.events import Scaled
from tests.gateway.shop import COUNT, warehouse
from tests.gateway.support import CHAT, MODEL, Running, attached, chat, metric, running, settled, until, written

module_loop = pytest.mark.asyncio(loop_scope="module")
TOKEN = "secret"
WRONG, REFUSED, AWAY, LOCKED = 2, 1, 3, 4
SLOW = EmulatedOptions(decode_step=0.05)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_ADMIN_TOKEN", TOKEN)
    monkeypatch.delenv("CORTEX_URL", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("site")
    async with serve(SLOW) as server:
        workers = warehouse(folder) | {"engines": {"min": 1, "start": 1, "max": 3}}
        pools = {"coder": attached(server.url, sequences=1), "warehouse": workers}
        stages = {"generate": {"pool": "coder"}, "execute": {"pool": "warehouse", "tool": "execute_sql"}}
        edges = [{"from": "start", "to": "generate"}, {"from": "generate", "to": "execute"}]
        flow = {"slo": {"deadline": "60s", "target": 0.9}, "stages": stages, "edges": edges}
        text = written(
            pools,
            admin={"token": TOKEN},
            workflows={"agent": flow},
            models={MODEL: "coder"},
            policies={"gate": {"name": "aimd", "start": 40}},
        )
        async with running(folder, text) as site:
            yield site
            await settled(site.gateway, server)


async def cortex(*words: str) -> int:
    """Run a command beside the gateway; returns its exit status."""
    return await asyncio.to_thread(main, words)


async def busy(up: Running) -> list[asyncio.Task[Any]]:
    """Two runs of which one has the only slot of the only engine and the other waits."""
    tasks = []
    for number in range(2):
        headers = {"X-Workflow-Type": "agent", "X-Workflow-Id": f"run-{number}", "X-Workflow-Stage": "generate"}
        tasks.append(asyncio.create_task(up.http.post(CHAT, json=chat(max_tokens=2000), headers=headers)))
    await until(lambda: up.gateway.runtime.dispatcher.calls == 2, "two calls")
    return tasks


async def idle(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@module_loop
async def test_status_shows_pools_engines_queues_and_runs(up: Running, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = await busy(up)
    assert await cortex("status", "--url", up.url) == 0
    await idle(tasks)
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^coder +1 of 1 .* 1 +1 +0 .*cortex-emulated$", out, re.MULTILINE)
    assert re.search(r"^warehouse +1 of 1–3 .* sql$", out, re.MULTILINE)
    assert "waiting   coder: generate 1\n" in out
    assert re.search(r"^gate +2 of 40, 0 calls parked$", out, re.MULTILINE)
    assert re.search(r"^coder/0 +ready ", out, re.MULTILINE)
    assert re.search(r"^ +5\d\.\d s +\d\d\.\d s .* 1  agent +generate +run-0", out, re.MULTILINE)
    assert out.endswith("2 runs\n")


@module_loop
async def test_status_says_when_there_are_more_runs_than_it_shows(
    up: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        headers = {"X-Workflow-Id": f"many-{number}"}
        await up.http.post("/v1/sql", json={"sql": COUNT}, headers=headers)
    assert await cortex("status", "--url", f"{up.url}/") == 0
    assert re.search(r"\d\d runs; those with the least slack are shown: 10\n$", capsys.readouterr().out)


@module_loop
async def test_status_for_scripts_is_what_the_admin_api_says(up: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert await cortex("status", "--url", up.url, "--json") == 0
    told = orjson.loads(capsys.readouterr().out)
    header = {"Authorization": f"Bearer {TOKEN}"}
    pools = (await up.http.get("/admin/pools", headers=header)).json()
    assert told["url"] == up.url
    assert [pool["name"] for pool in told["pools"]] == ["coder", "warehouse"]
    assert told["pools"][0].keys() == pools["pools"][0].keys()
    assert told["gate"] == pools["gate"]
    assert told["runs"].keys() == {"total", "runs"}


@module_loop
async def test_a_pool_grows_and_one_of_its_engines_goes(up: Running, capsys: pytest.CaptureFixture[str]) -> None:
    pool = up.gateway.runtime.dispatcher.fleet
    assert await cortex("scale", "warehouse", "2", "--url", up.url) == 0
    told = "pool warehouse: 2 of 1 to 3 engines wanted; 1 ready, 1 starting\n"
    assert capsys.readouterr().out == told
    await until(lambda: [engine.status for engine in pool.of("warehouse")] == ["ready"] * 2, "a second worker")
    assert await cortex("drain", "warehouse/0", "--url", up.url) == 0
    assert capsys.readouterr().out == (
        "engine warehouse/0 goes at once\npool warehouse: 1 of 1 to 3 engines wanted; 1 ready\n"
    )
    assert [engine.name for engine in pool.of("warehouse")] == ["warehouse/1"]


async def test_a_pool_whose_engines_do_not_start_stands_out_with_the_reason_until_they_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pool = warehouse(tmp_path)
    path = tmp_path / "shop.duckdb"
    away = path.rename(tmp_path / "away.duckdb")
    async with running(tmp_path, written({"warehouse": pool}, admin={"token": TOKEN})) as site:
        assert await cortex("status", "--url", site.url) == 0
        reason = r"no database can be opened: database 'shop': the database is not there now"
        told = (
            rf"^failing   warehouse: (1 start has|\d starts in a row have) failed, the last \d\.\d s ago: {reason}$"
        )
        assert re.search(told, capsys.readouterr().out, re.MULTILINE)
        assert f"'shop' ({path}: no such file)" in caplog.text
        header = {"Authorization": f"Bearer {TOKEN}"}
        failing = (await site.http.get("/admin/pools/warehouse", headers=header)).json()["failing"]
        assert failing["starts"] >= 1
        assert [
            metric(site.gateway, f"cortex_{name}_engines", pool="warehouse") for name in ("usable", "wanted")
        ] == [0, 1]
        assert str(tmp_path) not in failing["reason"]
        away.rename(path)
        await until(lambda: not site.gateway.runtime.ready(), "a worker", within=30)
        assert (await site.http.get("/admin/pools/warehouse", headers=header)).json()["failing"] is None
        assert await cortex("status", "--url", site.url) == 0
        assert "failing" not in capsys.readouterr().out


async def test_an_engine_with_calls_goes_after_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = {"model": MODEL, "backend": {"name": "emulated", "decode_step": "50ms"}, "engines": {"min": 1, "max": 2}}
    async with running(tmp_path, written({"coder": pool}, admin={"token": TOKEN})) as site:
        task = asyncio.create_task(site.http.post(CHAT, json=chat(max_tokens=2000)))
        await until(lambda: site.gateway.runtime.dispatcher.calls == 1, "a call")
        assert await cortex("drain", "coder/0", "--url", site.url) == 0
        assert "engine coder/0 goes after its 1 call\n" in capsys.readouterr().out
        fleet = site.gateway.runtime.dispatcher.fleet
        await until(lambda: [one.status for one in fleet.of("coder")] == ["draining", "ready"], "another", within=30)
        await idle([task])


@module_loop
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("scale nope 1", REFUSED, "scale: there is no pool 'nope' (there are: coder, warehouse)"),
        ("scale warehouse/0 1", REFUSED, "scale: there is no pool 'warehouse/0' (there are: coder, warehouse)"),
        ("scale warehouse 4", REFUSED, "scale: engines: pool 'warehouse' may have 1 to 3 engines"),
        ("scale warehouse -1", REFUSED, "scale: engines: pool 'warehouse' may have 1 to 3 engines"),
        ("drain coder", REFUSED, "drain: there is no engine 'coder' (there are: coder/0, warehouse/1)"),
        ("drain coder/7/8", REFUSED, "drain: there is no engine 'coder/7/8' (there are: coder/0, warehouse/1)"),
        (
            "status --token false",
            LOCKED,
            "status: {url}: this is not the admin token; set CORTEX_ADMIN_TOKEN or give --token-file",
        ),
        ("top", WRONG, "top: cortex top needs a terminal; `cortex top --once` prints one frame without"),
        ("top --svg x.svg", WRONG, "top: --svg is a picture of one frame: it goes with --once"),
        ("top --once --svg /nowhere/x.svg", WRONG, "top: --svg: /nowhere/x.svg: No such file or directory"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    up: Running, capsys: pytest.CaptureFixture[str], words: str, status: int, said: str
) -> None:
    workers = [engine.name for engine in up.gateway.runtime.dispatcher.fleet]
    assert await cortex(*words.split(), "--url", up.url) == status
    said = said.replace("warehouse/1", workers[-1])
    assert capsys.readouterr().err == f"cortex {said.format(url=up.url)}\n"


@module_loop
async def test_the_token_may_stand_in_a_file_and_the_address_in_the_environment(
    up: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORTEX_URL", up.url)
    monkeypatch.delenv("CORTEX_ADMIN_TOKEN")
    assert await cortex("status") == LOCKED
    assert "the admin's token is needed: set CORTEX_ADMIN_TOKEN, or give --token-file FILE" in capsys.readouterr().err
    token = tmp_path / "token"
    assert await cortex("status", "--token-file", str(token)) == WRONG
    assert f"--token-file: {token}: No such file or directory" in capsys.readouterr().err
    token.write_bytes(b"\xff")
    assert await cortex("status", "--token-file", str(token)) == WRONG
    assert "is no text" in capsys.readouterr().err
    token.write_text("two\nlines\n")
    assert await cortex("status", "--token-file", str(token)) == WRONG
    assert "one line of printable characters" in capsys.readouterr().err
    token.write_text(f"{TOKEN}\n")
    assert await cortex("status", "--token-file", str(token)) == 0


async def test_an_admin_api_that_is_off_is_said_with_the_key_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, written({"default": attached("http://127.0.0.1:1")})) as site:
        for words in (("status",), ("scale", "default", "1"), ("top", "--once")):
            assert await cortex(*words, "--url", site.url) == LOCKED
            assert (
                f"the gateway at {site.url} has no admin API: set admin.token in its conf" in capsys.readouterr().err
            )


@pytest.mark.parametrize("url", ["gpu-a:8080", "ftp://gpu-a", "http://", "http://gpu-a:port", "http://[::1"])
def test_an_address_that_is_none_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", url]) == WRONG
    assert f"--url: must be an address such as http://127.0.0.1:8080, and not '{url}'" in capsys.readouterr().err
    monkeypatch.setenv("CORTEX_URL", url)
    assert main(["status"]) == WRONG
    assert "CORTEX_URL: must be" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "4000", "soon"])
def test_an_interval_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["top", "--every", seconds])
    assert "--every: must be" in capsys.readouterr().err


async def answers(answer: Callable[[], bytes | None]) -> tuple[asyncio.Server, str]:
    """A server that gives the same bytes to everybody; None: nothing, and it holds the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        said = answer()
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"", AWAY, r"no gateway answers at {url} \(server disconnected\)|broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", REFUSED, "answers what this command does not know"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", AWAY, "with status 404.* is no Cortex gateway"),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", AWAY, "with status 302.* is no Cortex"),
        (None, AWAY, "did not answer within 0.2 s"),
    ],
)
async def test_what_is_no_gateway_is_told_from_one(
    answer: bytes | None,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2 if answer is None else 5.0)
    server, url = await answers(lambda: answer)
    async with server:
        assert await cortex("status", "--url", url) == status
    assert re.search(said.format(url=url), capsys.readouterr().err, re.IGNORECASE)


@pytest.mark.parametrize("words", ["scale coder 1", "drain coder/0"])
async def test_a_page_in_the_place_of_a_reply_is_no_reply(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    one: dict[str, object] = {
        "name": "coder/0",
        "pool": "coder",
        "state": "ready",
        "running": 0,
        "sequences": 1,
        "queued": 0,
    }
    one |= dict.fromkeys(("committed_work", "on_loan", "pressure", "kv_use", "prefix_tokens"), 0) | {"counters": {}}
    pool: dict[str, object] = {"name": "coder", "kind": "llm", "model": None, "waiting": 0, "parked": 0}
    pool |= {"min": 1, "max": 1, "target": 1} | {
        "waiting_by_stage": {},
        "mean_service_s": 0,
        "engines": [one | {"budget": None}],
    }
    gate = {"window": None, "active_runs": 0, "parked_calls": 0}
    bodies = [orjson.dumps({"pools": [pool], "gate": gate}), b"<html>Welcome to the proxy</html>"]
    head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n"
    server, url = await answers(lambda: head.format(len(bodies[0])).encode() + bodies.pop(0))
    async with server:
        assert await cortex(*words.split(), "--url", url) == REFUSED
    assert re.search(r"^cortex \w+: \S+/admin/\S+ answers what this command does not know", capsys.readouterr().err)


def test_where_nobody_is_stands_which_address_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:1"]) == AWAY
    assert capsys.readouterr().err == (
        "cortex status: no gateway answers at http://127.0.0.1:1 (connection refused): start one with "
        "`cortex serve`, or say where it is with --url or CORTEX_URL\n"
    )


@module_loop
async def test_one_frame_needs_no_terminal_has_no_colour_and_can_be_a_picture(
    up: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.terminal.watch.COUNTED_EVERY", 0.05)
    monkeypatch.setattr("gateway.terminal.top.COUNTED_EVERY", 0.05)
    monkeypatch.setenv("COLUMNS", "100")
    picture = tmp_path / "top.svg"
    tasks = await busy(up)
    assert await cortex("top", "--once", "--url", up.url, "--svg", str(picture)) == 0
    await idle(tasks)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith("cortex top")
    assert out.splitlines()[0].endswith(" live ")
    assert "calls " in out.splitlines()[1]
    assert re.search(r"^coder/0 +ready", out, re.MULTILINE)
    assert "run-0" in out
    assert max(map(len, out.splitlines())) == 100
    assert all(line == line.rstrip() for line in out.splitlines()[1:])
    drawn = picture.read_text()
    ElementTree.fromstring(drawn)
    assert "coder/0" in drawn
    assert "url(http" not in drawn, "it fetches nothing from elsewhere"


def _left() -> int:
    """The end of a pipe that nobody reads from any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


OUTPUTS: Mapping[str, Callable[[], AbstractContextManager[TextIO | None]]] = {
    "full": partial(Path("/dev/full").open, "w"),
    "full without a buffer": lambda: io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True),
    "closed": nullcontext,
    "left": lambda: os.fdopen(_left(), "w"),
    "ascii": partial(Path(os.devnull).open, "w", encoding="ascii"),
}
"""Standard outputs that take nothing, or not everything."""


async def unprinted(words: str, up: Running, output: str) -> int:
    """Run a command that cannot print what it wants to."""
    with OUTPUTS[output]() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.terminal.top.COUNTED_EVERY", 0.0)
        patch.setattr(sys, "stdout", stream)
        return await cortex(*words.split(), "--url", up.url)


UNPRINTED = {
    "full": (5, "cortex: the output cannot be written: no space left on device\n"),
    "full without a buffer": (5, "cortex: the output cannot be written: no space left on device\n"),
    "closed": (5, "cortex: the output cannot be written: it is closed\n"),
    "left": (0, ""),
}


@module_loop
@pytest.mark.parametrize("kind", UNPRINTED)
@pytest.mark.parametrize("words", ["status", "status --json", "top --once", "scale warehouse 2", "drain"])
async def test_what_cannot_be_printed_is_said_in_one_line_and_who_has_read_enough_hears_nothing(
    up: Running, words: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = up.gateway.runtime.dispatcher.fleet
    if words == "drain":
        up.gateway.runtime.handle(Scaled(pool="warehouse", engines=2))
        words = f"drain {engines.of('warehouse')[-1].name}"
    status = await unprinted(words, up, kind)
    assert (status, capsys.readouterr().err) == UNPRINTED[kind]


@module_loop
@pytest.mark.parametrize("words", ["status", "top --once"])
async def test_an_output_that_lacks_a_character_is_said_with_what_would_have_it(
    up: Running, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await unprinted(words, up, "ascii") == 5
    said = r"cortex: the output cannot be written: ascii has no '\\[ux]\w+' \(PYTHONIOENCODING=utf-8 has\)\n"
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["--version"], {"rich", "msgspec", "yaml", "pydantic"}),
        (["status", "--help"], {"rich", "aiohttp", "pydantic"}),
        (["keys", "list"], {"rich", "uvloop"}),
    ],
)
async def test_a_command_waits_for_nothing_that_it_does_not_use(
    words: list[str], spared: set[str], tmp_path: Path
) -> None:
    spared |= {
        "duckdb",
        "aiohttp",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "sqlglot",
        "gateway.compose",
        "simulator",
    }
    code = f"import sys\nfrom gateway.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += f"print(sorted({spared} & {{*sys.modules}}))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0].splitlines()[-1] == b"[]"


async def test_a_server_that_starts_has_nothing_of_what_draws() -> None:
    code = "import sys, gateway.compose; print(sorted({'rich', 'gateway.terminal.client'} & {*sys.modules}))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].splitlines()[-1] == b"[]"


@module_loop
async def test_a_reader_who_has_read_enough_is_no_trouble(up: Running) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "status", "--json", "--url", up.url),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
