"""The manifests: by the schemas of Kubernetes' own API, against each other, and as kustomize puts them together."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.cli import read_config
from gateway.settings import Config
from tests.deploy.files import DEPLOY, ROOT, SECRETS, compose, dockerfile, documents, one, variables

Object = dict[str, Any]

BASE = DEPLOY / "kubernetes/base"
EMULATED = DEPLOY / "kubernetes/emulated"
VERSIONS = ["1.30", "1.34", kubernetes_validate.latest_version()]
FOREIGN = {"ServiceMonitor"}
"""Kinds that Kubernetes itself does not have, and no schema at hand: what they refer to is checked below."""
_, IMAGE = dockerfile()


def kustomize() -> list[str]:
    """The command that puts a folder together."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    pytest.skip("neither kubectl nor kustomize is installed")


@functools.cache
def built(folder: Path) -> list[Object]:
    made = subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def written() -> Iterator[tuple[str, Object]]:
    """Every object as it stands in the files, patches and kustomizations left out."""
    for path in sorted(BASE.rglob("*.yaml")):
        if path.name not in {"kustomization.yaml", "config.yaml"}:
            for number, each in enumerate(documents(path)):
                yield f"{path.relative_to(BASE)}:{number}:{each['kind']}", each


WRITTEN = dict(written())


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pod(deployment: Object) -> Object:
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def base_objects() -> list[Object]:
    return list(WRITTEN.values())


@pytest.fixture(name="config")
def _config() -> Config:
    return read_config(BASE / "config.yaml", SECRETS)


def check(each: Object, version: str) -> None:
    if each["kind"] not in FOREIGN:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_object_keeps_to_the_schema_of_its_kind(name: str, version: str) -> None:
    check(WRITTEN[name], version)


def test_a_key_that_does_not_exist_is_found() -> None:
    deployment = yaml.safe_load(yaml.safe_dump(named(base_objects(), "Deployment", "gateway")))
    pod(deployment)["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        check(deployment, VERSIONS[0])


def test_every_file_that_a_kustomization_names_is_there() -> None:
    for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        (parts,) = documents(path)
        names = [*parts.get("resources", []), *(patch["path"] for patch in parts.get("patches", []))]
        names += [name for made in parts.get("configMapGenerator", []) for name in made["files"]]
        assert [name for name in names if not (path.parent / name).exists()] == [], path
        assert names


@pytest.mark.parametrize("folder", [BASE, EMULATED], ids=["base", "emulated"])
def test_what_kustomize_makes_of_it_keeps_to_the_schemas_and_has_an_engine_for_each_address(
    folder: Path, config: Config
) -> None:
    objects = built(folder)
    for each in objects:
        check(each, VERSIONS[-1])
        assert each["metadata"].get("namespace", "cortex") == "cortex"
    for pool in config.pools.values():
        for address in getattr(pool.backend, "attach", ()):
            name, _, port = address.removeprefix("http://").partition(":")
            service, engine = named(objects, "Service", name), named(objects, "Deployment", name)
            assert service["spec"]["selector"].items() <= engine["spec"]["template"]["metadata"]["labels"].items()
            assert service["spec"]["ports"][0]["port"] == int(port)
            others = [each for each in objects if each["kind"] == "Deployment" and each is not engine]
            for other in others:
                labels = other["spec"]["template"]["metadata"]["labels"]
                assert not service["spec"]["selector"].items() <= labels.items(), "one pod behind each name"


def test_the_gateway_is_given_the_configuration_that_was_checked(config: Config) -> None:
    objects = built(BASE)
    deployment = named(objects, "Deployment", "gateway")
    volumes = {volume["name"]: volume for volume in pod(deployment)["volumes"]}
    configmap = named(objects, "ConfigMap", volumes["config"]["configMap"]["name"])
    assert configmap["data"] == {"config.yaml": (BASE / "config.yaml").read_text()}
    (container,) = pod(deployment)["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"][-1] == f"{mounts['config']}/config.yaml"
    assert str(config.profiles.path).startswith(mounts["data"])
    assert mounts["data"] == variables(IMAGE)["CORTEX_DATA"]


def test_an_engine_without_a_gpu_asks_for_none_and_is_the_one_that_compose_starts() -> None:
    for name in ("engine-1", "engine-2"):
        (real,) = pod(named(built(BASE), "Deployment", name))["containers"]
        (emulated,) = pod(named(built(EMULATED), "Deployment", name))["containers"]
        assert real["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert set(emulated["resources"]["limits"]) == {"memory"}
        assert emulated["image"] == compose()["x-cortex"]["image"]
        assert emulated["command"] + emulated["args"] == compose()["services"]["emulated-1"]["command"]


def test_the_same_vllm_is_started_as_by_compose() -> None:
    (container,) = pod(named(base_objects(), "Deployment", "engine"))["containers"]
    service = compose()["services"]["vllm-1"]
    assert container["image"] == service["image"]
    assert container["command"] == service["entrypoint"]
    assert container["args"][1:] == service["command"][1:]
    assert container["args"][0] in service["command"][0]


def test_probes_ask_for_what_the_gateway_answers_at_the_port_where_it_listens(config: Config) -> None:
    (container,) = pod(named(base_objects(), "Deployment", "gateway"))["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": config.server.port}]
    service = named(base_objects(), "Service", "gateway")
    assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_a_pod_has_the_time_to_end_its_streams(config: Config) -> None:
    spec = pod(named(base_objects(), "Deployment", "gateway"))
    (container,) = spec["containers"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert spec["terminationGracePeriodSeconds"] >= pause + config.server.graceful_shutdown + 5


def test_the_gateway_has_no_rights_and_a_read_only_root() -> None:
    spec = pod(named(base_objects(), "Deployment", "gateway"))
    user, group = one(IMAGE, "USER").rest.split(":")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == int(user)
    assert spec["securityContext"]["fsGroup"] == int(group), "or it could not write its data"
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == rights


def test_the_secrets_are_those_that_the_configuration_asks_for() -> None:
    (container,) = pod(named(base_objects(), "Deployment", "gateway"))["containers"]
    references = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]}
    asked = set(re.findall(r"\$\{(\w+)", re.sub(r"(?m)#.*$", "", (BASE / "config.yaml").read_text())))
    assert set(references) == asked == set(SECRETS)
    assert {(name, each["key"]) for name, each in references.items()} == {(name, name) for name in SECRETS}
    monitor = named(base_objects(), "ServiceMonitor", "gateway")
    credentials = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials == references["CORTEX_SCRAPE_KEY"]


@pytest.mark.parametrize("component", ["gateway", "engine"])
def test_what_selects_pods_or_services_finds_them(component: str) -> None:
    objects = base_objects()
    labels = named(objects, "Deployment", component)["spec"]["template"]["metadata"]["labels"]
    service = named(objects, "Service", component)
    assert service["spec"]["selector"] == labels
    monitor = named(objects, "ServiceMonitor", component)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    assert {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]} == {"/metrics"}
    policy = named(objects, "NetworkPolicy", component)
    assert policy["spec"]["podSelector"]["matchLabels"] == labels


def test_the_operator_is_given_the_alerts_as_they_are() -> None:
    made = subprocess.run([str(DEPLOY / "kubernetes/rules.sh")], capture_output=True, text=True, check=True)
    rule = yaml.safe_load(made.stdout)
    assert rule["kind"] == "PrometheusRule"
    (alerts,) = documents(ROOT / "dashboards/alerts.yaml")
    assert rule["spec"] == alerts


def test_no_pod_may_be_reached_unless_a_policy_says_so() -> None:
    policy = named(base_objects(), "NetworkPolicy", "nobody")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_budget_leaves_one_gateway_and_lets_the_other_go() -> None:
    deployment = named(base_objects(), "Deployment", "gateway")
    budget = named(base_objects(), "PodDisruptionBudget", "gateway")["spec"]
    assert budget["selector"] == deployment["spec"]["selector"]
    assert 0 < budget["minAvailable"] < deployment["spec"]["replicas"], "or no node could be drained"
