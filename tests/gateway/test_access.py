"""Who may do what: API keys on every path under /v1, the admin's token, metrics, and what a key is worth."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from starlette.routing import Route

from gateway.app import Edge, create_app
from gateway.cli import read_config
from gateway.compose import compose
from gateway.config import ConfigError
from tests.gateway.rawhttp import connected, request
from tests.gateway.recorder import Recorder, recording
from tests.gateway.support import Running, attached, chat, error_of, running, settled, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
TOKEN, ADA, BOB = "the-admin-token", "key-of-ada", "key-of-bob"
KEYS = [
    {"key": ADA, "tenant": "ada", "priority": {"min": -2, "max": 2}},
    {"key": BOB, "tenant": "bob"},
]


class Site:
    """A gateway with keys and an admin token, and its engine."""

    def __init__(self, up: Running, engine: Recorder) -> None:
        self.up = up
        self.http = up.http
        self.engine = engine


def bearing(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    async with recording() as engine:
        text = written({"default": attached(engine.url)}, auth={"keys": KEYS, "salt": "s"}, admin={"token": TOKEN})
        async with running(folder, text) as up:
            yield Site(up, engine)


@pytest_asyncio.fixture(loop_scope="module")
async def site(shared_site: Site) -> AsyncIterator[Site]:
    shared_site.engine.seen.clear()
    yield shared_site
    await settled(shared_site.up.gateway)


def routes(up: Running) -> Iterator[tuple[str, str]]:
    """Every method and path that the application knows, with something in the place of each parameter."""
    app = create_app(up.gateway)
    assert isinstance(app, Edge)
    for route in app.app.routes:
        assert isinstance(route, Route)
        path = re.sub(
            r"\{[^}]+\}", "default", route.path.replace("{model:path}", MODEL_PATH).replace("{number}", "0")
        )
        for method in sorted(route.methods or ()):
            yield method, path


OPEN = ("/health", "/ready", "/metrics", "/admin/")
"""Paths that need no key of a client's."""
MODEL_PATH = "cortex-emulated"
WRONG = {
    "none": {},
    "wrong": bearing("nobody"),
    "empty": {"Authorization": ""},
    "no scheme": {"Authorization": ADA},
    "other scheme": {"Authorization": f"Basic {ADA}"},
    "prefix": bearing(ADA[:-1]),
    "longer": bearing(ADA + "x"),
    "two in one": bearing(f"{ADA}, {BOB}"),
    "admin": bearing(TOKEN),
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_without_a_key_no_path_of_an_agents_answers(site: Site, headers: dict[str, str]) -> None:
    known = [(method, path) for method, path in routes(site.up) if not path.startswith(OPEN)]
    assert len(known) >= 20
    for method, path in [*known, ("GET", "/v1/nothing"), ("GET", "/v1/"), ("PUT", CHAT), ("OPTIONS", CHAT)]:
        for where in (path, *([f"/w/any/s/one{path}"] if path.startswith("/v1") else [])):
            reply = await site.http.request(method, where, headers=headers, content=b"{")
            assert reply.status_code == 401, (method, where)
            assert reply.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert error_of(reply)["type"] == "authentication_error"
    assert site.engine.seen == []


async def test_without_a_key_no_body_is_waited_for(site: Site) -> None:
    async with connected(site.up.url) as raw:
        head, _, _ = request(b"x" * 1000).partition(b"\r\n\r\n")
        await raw.send(head + b"\r\n\r\n")
        assert (await raw.reply()).status == 401


@pytest.mark.parametrize("value", [f"Bearer {ADA}", f"bearer {ADA}", f"BEARER  {ADA}"])
async def test_a_key_is_taken_whatever_the_case_of_its_scheme(site: Site, value: str) -> None:
    assert (await site.http.post(CHAT, json=chat(), headers={"Authorization": value})).status_code == 200


async def test_a_key_is_taken_from_the_headers_of_anthropics_and_azures_clients(site: Site) -> None:
    for headers in ({"x-api-key": ADA}, {"api-key": ADA}, {"X-Api-Key": ADA, "Authorization": f"Bearer {ADA}"}):
        assert (await site.http.post(CHAT, json=chat(), headers=headers)).status_code == 200
        assert not {"authorization", "x-api-key", "api-key"} & {name.lower() for name, _ in site.engine.last.headers}
    for headers in ({"x-api-key": "nobody"}, {"api-key": ADA[:-1]}, {"x-api-key": f"Bearer {ADA}"}):
        assert (await site.http.post(CHAT, json=chat(), headers=headers)).status_code == 401


async def test_a_password_for_a_proxy_is_no_key(site: Site) -> None:
    headers = {"Authorization": "Basic YWRhOmFkYQ==", "x-api-key": ADA}
    assert (await site.http.post(CHAT, json=chat(), headers=headers)).status_code == 200


async def test_two_keys_are_none(site: Site) -> None:
    for headers in (
        [("Authorization", f"Bearer {ADA}"), ("Authorization", f"Bearer {BOB}")],
        [("Authorization", f"Bearer {ADA}"), ("x-api-key", BOB)],
        [("x-api-key", ADA), ("api-key", "nobody")],
        [("Authorization", "Bearer nobody"), ("x-api-key", ADA)],
    ):
        reply = await site.http.post(CHAT, json=chat(), headers=headers)
        assert (reply.status_code, error_of(reply)["code"]) == (401, "conflicting_api_keys")
    assert site.engine.seen == []


@pytest.mark.parametrize("secret", [ADA, TOKEN])
async def test_keys_stay_out_of_upstream_headers_errors_and_metrics(site: Site, secret: str) -> None:
    await site.http.post(CHAT, json=chat(), headers=bearing(ADA))
    seen = json.dumps(site.engine.last.headers)
    error = await site.http.post(CHAT, json=chat(model=1), headers=bearing(ADA))
    metrics = await site.http.get("/metrics", headers=bearing(ADA))
    assert secret not in seen + error.text + metrics.text + repr(site.up.gateway.config)
    assert secret not in repr(vars(site.up.gateway.access))


async def test_health_and_readiness_need_no_key(site: Site) -> None:
    for path in ("/health", "/ready"):
        assert (await site.http.get(path)).status_code == 200


@pytest.mark.parametrize(("secret", "status"), [("", 401), ("nobody", 401), (ADA, 200), (TOKEN, 200)])
async def test_metrics_are_for_those_with_a_key_and_for_the_admin(site: Site, secret: str, status: int) -> None:
    reply = await site.http.get("/metrics", headers=bearing(secret) if secret else {})
    assert reply.status_code == status
    assert ("cortex_requests_total" in reply.text) == (status == 200)


async def test_the_admins_paths_open_to_the_admins_token_alone(site: Site) -> None:
    paths = [(method, path) for method, path in routes(site.up) if path.startswith("/admin")]
    assert len(paths) >= 6
    for method, path in paths:
        for secret, status in (("", 401), ("nobody", 401), (ADA, 403)):
            reply = await site.http.request(method, path, headers=bearing(secret) if secret else {})
            assert reply.status_code == status, (method, path)
    assert (await site.http.get("/admin/pools", headers=bearing(TOKEN))).status_code == 200


async def test_without_a_token_there_is_no_admin(tmp_path: Path) -> None:
    async with recording() as engine, running(tmp_path, written({"default": attached(engine.url)})) as up:
        assert not any(path.startswith("/admin") for _, path in routes(up))
        for headers in ({}, {"Authorization": "Bearer"}, bearing("x")):
            for path in ("/admin/pools", "/admin/engines", "/admin"):
                assert (await up.http.get(path, headers=headers)).status_code == 404
        # ... and without keys nobody needs one, whatever the SDK sends in its place
        assert (await up.http.post(CHAT, json=chat(), headers=bearing("unused"))).status_code == 200
        assert (await up.http.get("/metrics")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_without_keys_only_loopback_is_listened_on(tmp_path: Path, host: str) -> None:
    text = written({"default": attached("http://127.0.0.1:9")}, server={"host": host, "port": 0})
    with pytest.raises(ConfigError, match="auth"):
        async with running(tmp_path, text):
            pass


async def test_nothing_is_built_that_would_let_anybody_in_by_accident(tmp_path: Path) -> None:
    pools = {"default": attached("http://127.0.0.1:9")}
    (tmp_path / "config.yaml").write_text(written(pools))
    config = read_config(tmp_path / "config.yaml", {})
    with pytest.raises(ConfigError, match="configuration: auth: no API key is configured"):
        await compose(config.model_copy(update={"insecure": False}))


async def test_tenants_with_the_same_run_id_have_runs_of_their_own(site: Site) -> None:
    for key in (ADA, BOB, ADA):
        headers = {**bearing(key), "X-Workflow-Id": "one-id"}
        assert (await site.http.post(CHAT, json=chat(), headers=headers)).status_code == 200
    found = {run.key: run.calls for run in site.up.gateway.runtime.dispatcher.runs if run.key[2] == "one-id"}
    assert found == {("ada", "", "one-id"): 2, ("bob", "", "one-id"): 1}


async def test_tenants_with_the_same_prompt_share_no_prefix(site: Site) -> None:
    prompt = "the same words " * 100
    for key in (ADA, BOB):
        await site.http.post(CHAT, json=chat(prompt), headers=bearing(key))
    salts = {request.document["cache_salt"] for request in site.engine.seen}
    assert len(salts) == 2
    prefixes = site.up.gateway.runtime.dispatcher.prefixes
    assert prefixes.blocks("default/0") >= 2 * (len(prompt) // 256)


async def test_a_priority_is_moved_to_what_the_key_allows(site: Site) -> None:
    async def place(key: str, priority: int) -> int:
        headers = {**bearing(key), "X-Workflow-Priority": str(priority), "X-Workflow-Deadline-Ms": "600000"}
        headers["X-Workflow-Id"] = f"of priority {priority}"
        await site.http.post(CHAT, json=chat(), headers=headers)
        return int(site.engine.last.header("X-Vllm-Priority") or "")

    at_most, asked_more = await place(ADA, 2), await place(ADA, 8)
    at_least, asked_less = await place(ADA, -2), await place(ADA, -8)
    unbounded = await place(BOB, 8)
    assert abs(asked_more - at_most) <= 2  # the clock goes on between two calls
    assert abs(asked_less - at_least) <= 2
    assert unbounded < at_most - 2 < at_least - 4


async def test_a_priority_beyond_all_bounds_is_an_error(site: Site) -> None:
    headers = {**bearing(BOB), "X-Workflow-Priority": "9"}
    assert (await site.http.post(CHAT, json=chat(), headers=headers)).status_code == 400
