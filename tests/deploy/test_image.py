"""The image, the health check and the unit: what they say agrees with each other and with what is there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cli import read_config
from gateway.config import ConfigError
from gateway.keys import hash_of
from tests.deploy.files import DEPLOY, ROOT, SECRETS, compose, context, dockerfile, documents, one, variables

BUILD, IMAGE = dockerfile()
CONFIGS = [DEPLOY / "config.yaml", DEPLOY / "kubernetes/base/config.yaml"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_image_is_built_by_the_script_that_can_be_run_without_docker() -> None:
    first, second = (step.words for step in BUILD if step.word == "RUN")
    assert first == ["/src/deploy/build.sh", "/src", "/opt/cortex"]
    assert second[:2] == ["install", "-d"]
    assert second[-1] == variables(IMAGE)["CORTEX_DATA"]
    assert not [step for step in IMAGE if step.word == "RUN"], "the image is made of what was built, and no more"


def test_the_image_runs_without_a_shell_as_a_user_by_number_who_owns_the_data() -> None:
    user = one(IMAGE, "USER").rest
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    owners = [step.rest for step in IMAGE if step.word == "COPY" and "--chown" in step.rest]
    assert [f"--chown={user}" in rest for rest in owners] == [True]
    assert owners[0].endswith(variables(IMAGE)["CORTEX_DATA"])
    assert one(IMAGE, "VOLUME").rest == variables(IMAGE)["CORTEX_DATA"]
    assert one(IMAGE, "STOPSIGNAL").rest == "SIGTERM"
    assert one(IMAGE, "CMD").words[:2] == ["cortex", "serve"]


def test_what_the_build_is_given_is_there_and_enough_for_the_script() -> None:
    given = context()
    assert [name for name in given if not (ROOT / name).exists()] == []
    script = (DEPLOY / "build.sh").read_text()
    used = set(re.findall(r'\$source/([\w./-]+)"', script))
    assert used, "the script names its files by $source"
    assert [name for name in sorted(used) if not any(f"{name}/".startswith(f"{path}/") for path in given)] == []


def test_paths_of_the_image_are_those_that_the_script_makes() -> None:
    script = (DEPLOY / "build.sh").read_text()
    named = {*re.findall(r"/opt/cortex/([\w./-]+)", (DEPLOY / "Dockerfile").read_text())}
    named |= {*re.findall(r"/opt/cortex/([\w./-]+)", (DEPLOY / "compose.yaml").read_text())}
    for path in CONFIGS[1:]:
        named |= {*re.findall(r"/opt/cortex/([\w./-]+)", path.read_text())}
    files = {name for name in named if not name.startswith("venv/")}
    assert files == {"deploy/probe.py", "deploy/config.yaml", "examples/nl2sql/script.json", "data/sales.duckdb"}
    assert all(Path(name).name in script for name in files)


def test_all_that_names_a_version_names_the_projects() -> None:
    assert f'version="{VERSION}"' in (DEPLOY / "Dockerfile").read_text()
    assert compose()["x-cortex"]["image"] == f"cortex:{VERSION}"
    (base,) = documents(DEPLOY / "kubernetes/base/kustomization.yaml")
    (emulated,) = documents(DEPLOY / "kubernetes/emulated/kustomization.yaml")
    assert {image["newTag"] for image in base["images"] + emulated["images"]} == {VERSION}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_configuration_is_accepted_with_the_secrets_and_names_the_first_that_lacks(path: Path) -> None:
    config = read_config(path, SECRETS)
    given = {hash_of(SECRETS[name]) for name in ("CORTEX_API_KEY", "CORTEX_SCRAPE_KEY")}
    assert {key.key for key in config.auth.keys} == given
    assert config.admin.token == SECRETS["CORTEX_ADMIN_TOKEN"]
    for name in ("CORTEX_API_KEY", "CORTEX_SCRAPE_KEY"):
        rest = {key: value for key, value in SECRETS.items() if key != name}
        with pytest.raises(ConfigError, match=f"config.yaml:\\d+: .*{name} is not set"):
            read_config(path, rest)


def test_all_that_is_written_goes_into_the_data_folder() -> None:
    data = "/var/lib/cortex"
    assert variables(IMAGE)["CORTEX_DATA"] == data
    for path in CONFIGS:
        config = read_config(path, {**SECRETS, "CORTEX_DATA": data})
        assert config.profiles.path == Path(data, "profiles.json")
        assert config.server.journal is None


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """The port of a server that answers all alike, and notes nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield str(server.sockets[0].getsockname()[1])


async def probed(port: str) -> tuple[int | None, str]:
    # Through a proxy that is not there, which it must not ask.
    environ = {"CORTEX_PORT": port, "http_proxy": "http://127.0.0.1:1"}
    probe = await asyncio.create_subprocess_exec(
        sys.executable, str(DEPLOY / "probe.py"), "/ready", stderr=asyncio.subprocess.PIPE, env=environ
    )
    _, said = await probe.communicate()
    return probe.returncode, said.decode()


async def test_the_health_check_goes_by_the_status_and_says_what_it_met() -> None:
    async with answering(200) as port:
        assert await probed(port) == (0, "")
    async with answering(503) as port:
        assert await probed(port) == (1, f"http://127.0.0.1:{port}/ready: HTTP Error 503: x\n")
    status, said = await probed("1")
    assert (status, said.count("\n")) == (1, 1)
    assert "refused" in said


def unit() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / "cortex.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            yield name, value


def test_the_unit_waits_longer_than_the_drain_and_tells_only_the_gateway_to_stop() -> None:
    settings = dict(unit())
    assert settings["KillMode"] == "mixed", "its engines and workers are needed until the streams have ended"
    config = read_config(DEPLOY / "config.yaml", SECRETS)
    assert float(settings["TimeoutStopSec"].removesuffix("s")) >= config.server.graceful_shutdown + 5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one_that_systemd_understands_and_calls_tight(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("cortex")
    text = (DEPLOY / "cortex.service").read_text()
    assert text.count("/opt/cortex/venv/bin/cortex") == 2
    copy = tmp_path / "cortex.service"
    copy.write_text(text.replace("/opt/cortex/venv/bin/cortex", str(command)))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("KillMode=mixed", "KillMode=gently"))
    refused = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert "gently" in refused.stderr, "it does look at the values"


def test_the_workers_may_still_lock_themselves_up() -> None:
    """What the unit takes from the service must leave what the SQL workers take from themselves."""
    filters = [value for name, value in unit() if name == "SystemCallFilter"]
    assert filters[0] == "@system-service"
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"} <= set(
        filters[-1].split()
    )
    assert not [value for value in filters if value.startswith("~") and "@resources" in value]
    assert dict(unit())["RestrictNamespaces"].split() == ["user", "net"]


def test_the_health_checks_of_the_image_and_of_compose_are_the_same() -> None:
    words = json.loads(one(IMAGE, "HEALTHCHECK").rest.partition(" CMD ")[2])
    assert compose()["services"]["gateway"]["healthcheck"]["test"] == ["CMD", *words]
