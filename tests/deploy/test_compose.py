"""compose.yaml and what it mounts: by the schema of the Compose Specification, against the gateway's configuration,
and by Compose itself where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from gateway.cli import read_config
from gateway.settings import Config
from tests.deploy.files import DEPLOY, ROOT, SECRETS, compose, documents, emulated

COMPOSE = shutil.which("docker-compose")
SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = [name for name in SERVICES if not name.startswith("vllm")]


@pytest.fixture(name="config")
def _config() -> Config:
    return read_config(DEPLOY / "config.yaml", SECRETS)


def port_of(name: str) -> str:
    return name.rpartition(":")[2]


def variables() -> dict[str, str | None]:
    """Every variable that the file asks for, with what follows its name."""
    text = re.sub(r"(?m)^\s*#.*$", "", (DEPLOY / "compose.yaml").read_text())
    return {name: rest or None for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", text)}


def example() -> dict[str, str]:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    found = [re.fullmatch(r"(?:# )?([A-Z_0-9]+)=(.*)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_it_keeps_to_the_specification() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose())] == []
    broken = compose()
    broken["services"]["gateway"]["read_onyl"] = True
    assert [error.message for error in validator.iter_errors(broken)], "the schema does look at the keys"


def test_every_file_that_a_service_mounts_is_there_or_made_by_the_script() -> None:
    mounted = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    }
    missing = [path for path in mounted if not (DEPLOY / path).exists()]
    assert missing in ([], ["./secrets/scrape-key"])
    assert len(mounted) == 5
    named = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert named == set(compose()["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_a_service_can_write_only_where_it_must_and_has_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"][0] == "CMD", "no shell is needed"
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert service["pids_limit"] > 0


def test_ports_are_open_to_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [port for port in published if not re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port)] == []
    assert len(published) == 3


def test_the_gateway_is_where_all_others_look_for_it(config: Config) -> None:
    port = str(config.server.port)
    assert port_of(SERVICES["gateway"]["ports"][0]) == port
    (prometheus,) = documents(DEPLOY / "prometheus.yaml")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
    assert targets["cortex"] == [f"gateway:{port}"]
    attached = [address for pool in config.pools.values() for address in getattr(pool.backend, "attach", ())]
    assert [f"http://{target}" for target in targets["engines"]] == attached
    assert config.state.redis == "redis://redis:6379/0"


@pytest.mark.parametrize("profile", ["emulated", "vllm"])
def test_each_profile_has_every_engine_once_under_the_name_and_model_that_the_gateway_asks_for(
    profile: str, config: Config
) -> None:
    services = [service for service in SERVICES.values() if service.get("profiles") == [profile]]
    names = [alias for service in services for alias in service["networks"]["default"]["aliases"]]
    ports = {word.partition("=")[2] for service in services for word in service["command"] if "--port" in word}
    addresses = sorted(f"http://{name}:{port}" for name in names for port in ports)
    pools = [pool for pool in config.pools.values() if pool.model is not None]
    assert addresses == sorted(address for pool in pools for address in getattr(pool.backend, "attach", ()))
    model = "--model=" if profile == "emulated" else "--served-model-name="
    assert {pool.model for pool in pools} == {
        word.removeprefix(model) for service in services for word in service["command"] if word.startswith(model)
    }


def test_the_emulated_engines_are_started_with_options_that_exist() -> None:
    options, place = emulated(SERVICES["emulated-1"]["command"])
    assert options.script == "/opt/cortex/examples/nl2sql/script.json"
    assert SERVICES["emulated-1"]["environment"]["CORTEX_PORT"] == place["port"], "where the health check asks"


def test_each_vllm_server_has_a_gpu_of_its_own() -> None:
    services = [service for service in SERVICES.values() if service.get("profiles") == ["vllm"]]
    devices = [device for service in services for device in service["deploy"]["resources"]["reservations"]["devices"]]
    assert [device["capabilities"] for device in devices] == [["gpu"], ["gpu"]]
    ids = [each for device in devices for each in device["device_ids"]]
    assert len(set(ids)) == len(ids) == len(services)


def test_docker_waits_longer_than_the_drain(config: Config) -> None:
    grace = float(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace >= config.server.graceful_shutdown + 5


def test_prometheus_reads_what_is_mounted_and_with_the_gateways_key() -> None:
    (prometheus,) = documents(DEPLOY / "prometheus.yaml")
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in SERVICES["prometheus"]["volumes"]}
    credentials = prometheus["scrape_configs"][0]["authorization"]["credentials_file"]
    assert mounts[credentials] == "./secrets/scrape-key"
    assert [mounts[path] for path in prometheus["rule_files"]] == ["../dashboards/alerts.yaml"]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)"
)
def test_prometheus_itself_accepts_its_configuration(tmp_path: Path) -> None:
    (prometheus,) = documents(DEPLOY / "prometheus.yaml")
    (tmp_path / "key").write_text("key")
    prometheus["scrape_configs"][0]["authorization"]["credentials_file"] = str(tmp_path / "key")
    prometheus["rule_files"] = [str(ROOT / "dashboards/alerts.yaml")]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(prometheus))
    words = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_the_data_source_and_the_boards() -> None:
    (sources,) = documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"].removeprefix("http://").split(":") == ["prometheus", "9090"]
    (providers,) = documents(DEPLOY / "grafana/provisioning/dashboards/cortex.yaml")
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in SERVICES["grafana"]["volumes"]}
    boards = DEPLOY / mounts[providers["providers"][0]["options"]["path"]]
    assert len(list(boards.glob("*.json"))) == 4
    (prometheus,) = documents(DEPLOY / "prometheus.yaml")
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_every_variable_has_a_default_or_a_message_and_stands_in_the_example() -> None:
    asked = variables()
    assert {name for name, rest in asked.items() if rest is None} == set()
    required = {name for name, rest in asked.items() if rest and rest.startswith(":?")}
    assert {rest for rest in asked.values() if rest and rest.startswith(":?")} == {":?run deploy/new-secrets.sh"}
    assert required == {*SECRETS, "GRAFANA_PASSWORD"}
    assert required == {name for name, value in example().items() if not value} - {"HF_TOKEN"}
    assert set(asked) | {"COMPOSE_PROFILES"} == set(example())


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """The folder as a fresh clone has it."""
    ignored = shutil.ignore_patterns(".env", "secrets", "vllm")
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=ignored)
    (tmp_path / "dashboards").symlink_to(ROOT / "dashboards")
    return tmp_path / "deploy"


def drawn(copy: Path) -> dict[str, str]:
    subprocess.run([str(copy / "new-secrets.sh")], check=True, capture_output=True)
    lines = (copy / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match("[A-Z]", line))


def test_the_secrets_are_drawn_once_and_are_for_nobody_else(copy: Path) -> None:
    first = drawn(copy)
    secrets = [first[name] for name in (*SECRETS, "GRAFANA_PASSWORD")]
    assert len(set(secrets)) == 5
    assert {len(secret) for secret in secrets} == {48}
    assert (copy / "secrets/scrape-key").read_text() == first["CORTEX_SCRAPE_KEY"]
    assert (copy / ".env").stat().st_mode & 0o777 == 0o600
    assert (copy / "secrets").stat().st_mode & 0o777 == 0o700
    assert (copy / "secrets/scrape-key").stat().st_mode & 0o777 == 0o444, "Prometheus is another user"
    assert drawn(copy) == first


def rendered(copy: Path) -> subprocess.CompletedProcess[str]:
    assert COMPOSE
    environ = {name: value for name, value in os.environ.items() if name not in variables()}
    words = [COMPOSE, "-f", str(copy / "compose.yaml"), "config"]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environ, cwd=copy)


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed (Debian's package of that name)")
def test_compose_itself_accepts_it_and_fills_in_the_variables(copy: Path) -> None:
    secrets = drawn(copy)
    made = rendered(copy)
    assert made.returncode == 0, made.stderr
    gateway = yaml.safe_load(made.stdout)["services"]["gateway"]
    assert gateway["environment"]["CORTEX_API_KEY"] == secrets["CORTEX_API_KEY"]
    assert "127.0.0.1:8080:8080" in str(gateway["ports"])


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed (Debian's package of that name)")
@pytest.mark.parametrize("name", [*SECRETS, "GRAFANA_PASSWORD"])
def test_a_variable_that_is_missing_is_an_error_that_says_what_to_do(copy: Path, name: str) -> None:
    drawn(copy)
    text = (copy / ".env").read_text()
    (copy / ".env").write_text(re.sub(rf"(?m)^{name}=.*$", f"{name}=", text))
    made = rendered(copy)
    assert made.returncode != 0
    assert "run deploy/new-secrets.sh" in made.stderr
    assert name in made.stderr
