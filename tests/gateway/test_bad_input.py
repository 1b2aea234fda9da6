"""What a client can get wrong: each has a status, an error that names the place, and reaches no engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from gateway.openai.errors import ERRORS
from tests.gateway.rawhttp import Raw, connected, request
from tests.gateway.recorder import Exchange, Recorder, recording
from tests.gateway.support import MODEL, Running, attached, chat, error_of, running, settled, until, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
LIMITS = {"port": 0, "max_body": "10kB", "max_header": "8kB", "max_header_count": 50}
WORKFLOWS = {
    "nl2sql": {
        "stages": {"generate": {"pool": "default", "prompt": "p.md"}, "answer": {"render": "p.md"}},
        "edges": [{"from": "start", "to": "generate"}, {"from": "generate", "to": "answer"}],
    },
    "own-drive": {"stages": {"plan": {"pool": "default"}}, "edges": [{"from": "start", "to": "plan"}]},
}


class Site:
    """A gateway with one engine, and a client for it."""

    def __init__(self, up: Running, engine: Recorder) -> None:
        self.up = up
        self.http = up.http
        self.engine = engine

    def refused(self, reply: httpx.Response, status: int, param: str | None, code: str = "") -> str:
        """Check an error reply, and that no engine heard of its call; returns its message."""
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (status, param), error
        assert set(error) == {"message", "type", "param", "code"}
        assert ERRORS[error["code"]] == (status, error["type"])
        assert not code or error["code"] == code
        assert reply.headers["content-type"] == "application/json"
        assert self.engine.seen == []
        message: str = error["message"]
        assert message.isprintable()
        return message


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "p.md").write_text("{question}")
    async with recording() as engine:
        text = written(
            {"default": attached(engine.url)}, server=LIMITS, workflows=WORKFLOWS, models={"big-*": "default"}
        )
        async with running(folder, text) as up:
            yield Site(up, engine)


@pytest_asyncio.fixture(loop_scope="module")
async def site(shared_site: Site) -> AsyncIterator[Site]:
    """After each test the gateway must still serve, hold nothing, and have its metrics in order."""
    yield shared_site
    reply = await shared_site.http.post(CHAT, json=chat())
    assert reply.status_code == 200
    shared_site.engine.seen.clear()
    await settled(shared_site.up.gateway)
    metrics = (await shared_site.http.get("/metrics")).text
    assert 'cortex_requests_total{endpoint="chat",status="200"}' in metrics
    assert 'status="500"' not in metrics


BODIES: list[tuple[bytes, int, str | None]] = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"nonsense", 400, None),
    (b"[]", 400, None),
    (b'"text"', 400, None),
    (b"null", 400, None),
    (b"\xff\xfe{}", 400, None),
    (b'{"model": NaN}', 400, None),
    (b'{"a":' * 100 + b"1" + b"}" * 100, 400, None),
    (b"[" * 9000, 400, None),
    (b'{"model": "m", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", 400, None),
    (b"{}", 400, "model"),
    (b'{"model": null, "messages": []}', 400, "model"),
    (b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}', 400, "model"),
    (b'{"model": "", "messages": [{"role": "user", "content": "x"}]}', 400, "model"),
    (json.dumps(chat(model="m" * 300)).encode(), 400, "model"),
    (b'{"model": "cortex-emulated"}', 400, "messages"),
    (b'{"model": "cortex-emulated", "messages": []}', 400, "messages"),
    (b'{"model": "cortex-emulated", "messages": {}}', 400, "messages"),
    (b'{"model": "cortex-emulated", "messages": ["hi"]}', 400, "messages[0]"),
    (b'{"model": "cortex-emulated", "messages": [{"role": "user"}, {"content": "x"}]}', 400, "messages[1].role"),
]


@pytest.mark.parametrize(("body", "status", "param"), BODIES, ids=lambda case: repr(case)[:40])
async def test_a_body_that_is_none_is_told_what_is_wrong(
    site: Site, body: bytes, status: int, param: str | None
) -> None:
    site.refused(await site.http.post(CHAT, content=body), status, param)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("stream", "yes"),
        ("stream", 1),
        ("stream_options", []),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_completion_tokens", "9"),
        ("n", 0),
        ("n", "2"),
        ("temperature", "hot"),
        ("seed", 1.5),
        ("tools", {}),
        ("tools[0]", ["x"]),
        ("tool_choice", 5),
        ("metadata", []),
        ("workflow", "nl2sql"),
        ("workflow.stage", {"stage": 5}),
        ("workflow.type", {"type": ""}),
        ("workflow.id", {"id": "x" * 257}),
        ("workflow.id", {"id": "a\nb"}),
        ("workflow.step", {"step": 0}),
        ("workflow.deadline_ms", {"deadline_ms": "soon"}),
        ("workflow.priority", {"priority": 9}),
        ("workflow.hints", {"hints": 5}),
        ("workflow.final", {"final": "perhaps"}),
    ],
)
async def test_a_member_of_the_wrong_type_is_named(site: Site, member: str, value: object) -> None:
    name = member.partition(".")[0].partition("[")[0]
    message = site.refused(await site.http.post(CHAT, json={**chat(), name: value}), 400, member)
    assert message.startswith(f"{member}: ")


@pytest.mark.parametrize("prompt", [None, 5, {}, [], [1, "a"], [[]], [-1], [True], [2**31], [[1], [2.0]]])
async def test_a_prompt_that_is_none_is_named(site: Site, prompt: object) -> None:
    body = {"model": MODEL, "prompt": prompt}
    site.refused(await site.http.post("/v1/completions", json=body), 400, "prompt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Workflow-Id", "x" * 257),
        ("X-Workflow-Id", ""),
        ("X-Workflow-Id", "tab\there"),
        ("X-Workflow-Type", "\xff\xfe"),
        ("X-Workflow-Stage", "x" * 300),
        ("X-Workflow-Step", "0"),
        ("X-Workflow-Step", "first"),
        ("X-Workflow-Deadline-Ms", "-5"),
        ("X-Workflow-Deadline-Ms", "1e3"),
        ("X-Workflow-Deadline-Ms", "9" * 40),
        ("X-Workflow-Priority", "9"),
        ("X-Workflow-Priority", "high"),
        ("X-Workflow-Hints", "osl=-1"),
        ("X-Workflow-Hints", "a=(("),
        ("X-Workflow-Final", "maybe"),
        ("X-Workflow-Tools", "run"),
    ],
)
async def test_an_ill_formed_header_is_named(site: Site, name: str, value: str) -> None:
    headers = [(name.encode(), value.encode("latin-1"))]
    site.refused(await site.http.post(CHAT, json=chat(), headers=headers), 400, name)


async def test_a_header_given_twice_is_nobodys(site: Site) -> None:
    headers = [("X-Workflow-Id", "one"), ("X-Workflow-Id", "two")]
    site.refused(await site.http.post(CHAT, json=chat(), headers=headers), 400, "X-Workflow-Id")


@pytest.mark.parametrize(
    ("path", "model", "status", "code"),
    [
        (CHAT, "gpt-nothing", 404, "model_not_found"),
        (CHAT, "workflow/nothing", 404, "model_not_found"),
        (CHAT, "workflow/", 404, "model_not_found"),
        (CHAT, "nl2sql/nothing", 404, "stage_not_found"),
        ("/w/nothing/v1/chat/completions", MODEL, 404, "workflow_not_found"),
        ("/w/nl2sql/s/nothing/v1/chat/completions", MODEL, 404, "stage_not_found"),
        ("/w/%2e%2e/v1/chat/completions", MODEL, 404, "workflow_not_found"),
        ("/w/nl2sql/s//v1/chat/completions", MODEL, 404, "not_found"),
        ("/w//v1/chat/completions", MODEL, 404, "not_found"),
        ("/w/nl2sql/chat/completions", MODEL, 404, "not_found"),
        ("/v1/nothing", MODEL, 404, "not_found"),
        ("/v1/tokenize", MODEL, 404, "not_found"),
        ("/invocations", MODEL, 404, "not_found"),
        ("//v1/chat/completions", MODEL, 404, "not_found"),
        ("/V1/chat/completions", MODEL, 404, "not_found"),
    ],
)
async def test_a_name_that_nobody_knows_is_404(site: Site, path: str, model: str, status: int, code: str) -> None:
    what = code.removesuffix("_not_found") if code != "not_found" else None
    site.refused(await site.http.post(path, json=chat(model=model)), status, what, code)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/databases", "/v1/sql", "/v1/nothing", "/v1"])
async def test_an_unknown_name_in_a_path_is_404_on_every_route(site: Site, path: str) -> None:
    site.refused(await site.http.get(f"/w/nope{path}"), 404, "workflow", "workflow_not_found")
    site.refused(await site.http.get(f"/w/nl2sql/s/nah{path}"), 404, "stage", "stage_not_found")


@pytest.mark.parametrize("path", ["/", "/w/nl2sql/v1", "/w/nl2sql/s/answer/v1/nothing", "/v1/nothing"])
async def test_a_path_that_is_none_is_shown_as_it_was_sent_and_told_what_there_is(site: Site, path: str) -> None:
    message = site.refused(await site.http.get(path), 404, None, "not_found")
    assert message == f"no path named '{path}' (the API is under /v1; see /health, /ready, /metrics)"


async def test_what_is_offered_in_a_names_place_can_be_used_there(site: Site) -> None:
    for model, what, known in (
        ("nl2sql/nothing", "stage", "generate"),
        ("nothing", "model", "big-*, cortex-emulated, nl2sql/generate, own-drive/plan, workflow/nl2sql"),
    ):
        message = site.refused(await site.http.post(CHAT, json=chat(model=model)), 404, what)
        assert message.endswith(f"(known: {known})")
    reply = await site.http.post("/w/nl2sql/s/nothing/v1/chat/completions", json=chat())
    assert site.refused(reply, 404, "stage").endswith("(known: answer, generate)")


async def test_names_are_shown_on_one_line_and_cut(site: Site) -> None:
    message = site.refused(await site.http.post(CHAT, json=chat(model="a\n\x1b[31m" + "b" * 200)), 404, "model")
    assert "a\\n" in message
    assert "b" * 150 not in message


async def test_a_stage_without_a_model_serves_no_chat(site: Site) -> None:
    headers = {"X-Workflow-Type": "nl2sql", "X-Workflow-Stage": "answer"}
    site.refused(await site.http.post(CHAT, json=chat(), headers=headers), 400, "stage")


async def test_a_workflow_gives_one_answer(site: Site) -> None:
    reply = await site.http.post(CHAT, json=chat(model="workflow/nl2sql", n=2))
    site.refused(reply, 400, "n")


async def test_a_workflow_whose_stages_have_no_prompts_cannot_be_walked(site: Site) -> None:
    message = site.refused(await site.http.post(CHAT, json=chat(model="workflow/own-drive")), 400, "model")
    assert "'plan' has no prompt" in message
    listed = [model["id"] for model in (await site.http.get("/v1/models")).json()["data"]]
    assert "workflow/nl2sql" in listed
    assert "workflow/own-drive" not in listed


async def test_bodies_beyond_what_the_gateway_holds_are_refused_while_others_are_open(tmp_path: Path) -> None:
    async with recording() as engine:
        release = asyncio.Event()
        answer = engine.answer

        async def slowly(exchange: Exchange) -> None:
            await release.wait()
            await answer(exchange)

        engine.answer = slowly
        text = written({"default": attached(engine.url)}, limits={"held_bytes": "2kB"})
        async with running(tmp_path, text) as up:
            first = asyncio.create_task(up.http.post(CHAT, json=chat("x" * 1500)))
            await until(lambda: up.gateway.door.held > 1500)
            second = await up.http.post(CHAT, json=chat("y" * 1500))
            assert (second.status_code, error_of(second)["code"]) == (503, "pool_unavailable")
            assert int(second.headers["retry-after"]) >= 1
            release.set()
            assert (await first).status_code == 200
            await settled(up.gateway)
            assert up.gateway.door.held == 0


async def test_a_body_over_the_cap_is_refused_by_its_declared_length_alone(site: Site) -> None:
    async with connected(site.up.url) as raw:
        head = request(b"x" * 10_001)[:-10_001]
        await raw.send(head)
        said = await raw.reply()
    assert said.status == 413
    assert json.loads(said.body)["error"]["code"] == "request_too_large"
    assert site.engine.seen == []


async def test_a_chunked_body_is_counted_as_it_comes(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 1000

    site.refused(await site.http.post(CHAT, content=pieces()), 413, None)


async def test_a_chunked_body_within_the_cap_is_served(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        body = json.dumps(chat()).encode()
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    assert (await site.http.post(CHAT, content=pieces())).status_code == 200


async def test_headers_too_many_or_too_large_are_431(site: Site) -> None:
    many = {f"X-Thing-{index}": "1" for index in range(60)}
    site.refused(await site.http.post(CHAT, json=chat(), headers=many), 431, None)
    site.refused(await site.http.post(CHAT, json=chat(), headers={"X-Large": "x" * 9000}), 431, None)


async def test_two_hosts_are_refused(site: Site) -> None:
    async with connected(site.up.url) as raw:
        await raw.send(request(chat(), "Host: there"))
        said = await raw.reply()
    assert (said.status, json.loads(said.body)["error"]["param"]) == (400, "Host")
    assert site.engine.seen == []


SMUGGLING = [
    request(chat(), "Transfer-Encoding: chunked"),
    request(chat(), "Content-Length: 3"),
    request(b"", "Transfer-Encoding: xchunked").replace(b"Content-Length: 0\r\n", b"") + b"0\r\n\r\n",
    request(chat(), "X-Bad : space"),
    request(chat()).replace(b"Content-Length: ", b"Content-Length: +"),
    request(chat(), "X-Nul: a\0b"),
    request(chat(), "X-Folded: a\r\n b"),
    b"GARBAGE\r\n\r\n",
]


@pytest.mark.parametrize("data", SMUGGLING, ids=range(len(SMUGGLING)))
async def test_requests_of_two_minds_about_their_length_are_refused(site: Site, data: bytes) -> None:
    async with connected(site.up.url) as raw:
        await raw.send(data)
        assert (await raw.head()).status == 400
        await closed(raw)
    assert site.engine.seen == []


async def closed(raw: Raw) -> None:
    """Wait until the server has hung up, whatever it still says."""
    while await raw.reader.read(65536):
        pass


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, {"POST"}),
        ("PUT", CHAT, {"POST"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
        ("OPTIONS", CHAT, {"POST"}),
        ("GET", "/v1/sql", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(site: Site, method: str, path: str, allowed: set[str]) -> None:
    reply = await site.http.request(method, path)
    site.refused(reply, 405, None, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/ready"])
async def test_head_answers_as_get_does_without_a_body(site: Site, path: str) -> None:
    async with connected(site.up.url) as raw:
        await raw.send(request(b"", method="HEAD", path=path))
        said = await raw.reply(body=False)
        assert (said.status, said.headers["content-type"]) == (200, "application/json")
        await raw.send(request(b"", path="/health", method="GET"))
        assert (await raw.reply()).body == b'{"status":"alive"}'


async def test_who_asks_for_a_websocket_is_answered_as_anybody_is(site: Site) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13")
    async with connected(site.up.url) as raw:
        await raw.send(request(b"", *upgrade, path="/v1/models", method="GET"))
        assert (await raw.reply()).status == 200


async def test_what_clients_send_makes_no_new_metrics(site: Site) -> None:
    def series(text: str) -> int:
        return sum(not line.startswith("#") for line in text.splitlines())

    await site.http.post(CHAT, json=chat(model="unknown-0"), headers={"X-Workflow-Type": "w0"})
    before = series((await site.http.get("/metrics")).text)
    for index in range(50):
        await site.http.post(CHAT, json=chat(model=f"unknown-{index}"), headers={"X-Workflow-Type": f"w{index}"})
        await site.http.get(f"/nowhere/{index}")
    assert series((await site.http.get("/metrics")).text) == before
    site.engine.seen.clear()
