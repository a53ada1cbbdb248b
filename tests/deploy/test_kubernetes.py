"""The manifests against KubeRay's own schema, and against the code they start."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from igd.storage import s3
from jobs.command import command_line

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "train-all.yaml"
SHARED = Path(os.environ.get("IGD_SHARED", ROOT.parent / "shared"))
CRD = SHARED / "kuberay-crds" / "v1.7.0" / "rayjobs.yaml"

OBJECT_META = {"type": "object", "required": ["name"], "properties": {
    "name": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$"},
    "namespace": {"type": "string"},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}}
"""A CRD leaves its resource's own metadata to Kubernetes."""

CONFIG_MAP = {"type": "object", "required": ["apiVersion", "kind", "metadata"], "properties": {
    "apiVersion": {"const": "v1"}, "kind": {"const": "ConfigMap"}, "metadata": OBJECT_META,
    "data": {"type": "object", "additionalProperties": {"type": "string"}},
    "immutable": {"type": "boolean"}}}


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """What the API server makes of a value before it validates it."""
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        absent = {key: copy.deepcopy(of["default"]) for key, of in known.items()
                  if "default" in of and key not in value}
        return {key: with_defaults(inner, known.get(key, rest))
                for key, inner in {**absent, **value}.items()}
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields refused, which the API server would silently drop."""
    schema = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = closed(schema[key])
    if "properties" in schema:
        schema["properties"] = {key: closed(of) for key, of in schema["properties"].items()}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.pop("nullable", False):
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def problems(resource: Any, schema: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator(closed(schema))
    return [f"{error.json_path}: {error.message}"
            for error in validator.iter_errors(with_defaults(resource, schema))]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    if not CRD.exists():
        pytest.skip(f"no {CRD}: set IGD_SHARED to the folder with kuberay-crds")
    document = yaml.load(CRD.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    served, = (one for one in document["spec"]["versions"] if one["name"] == "v1")
    return {**served["schema"]["openAPIV3Schema"], "required": ["apiVersion", "kind", "spec"],
            "properties": {**served["schema"]["openAPIV3Schema"]["properties"],
                           "apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayJob"},
                           "metadata": OBJECT_META}}


@pytest.fixture
def config_map() -> dict[str, Any]:
    return next(yaml.safe_load_all(MANIFEST.read_text()))


@pytest.fixture
def job() -> dict[str, Any]:
    _, found = yaml.safe_load_all(MANIFEST.read_text())
    return copy.deepcopy(found)  # what YAML's aliases share comes apart


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return {"submitter": job["spec"]["submitterPodTemplate"]["spec"],
            "head": cluster["headGroupSpec"]["template"]["spec"],
            **{group["groupName"]: group["template"]["spec"]
               for group in cluster["workerGroupSpecs"]}}


def test_the_manifest_is_as_kuberay_wants_it(job, config_map, schema) -> None:
    assert problems(job, schema) == []
    assert problems(config_map, CONFIG_MAP) == []


def worker(job: dict[str, Any]) -> Any:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda job: job["spec"].update(backofLimit=1), "'backofLimit' was unexpected"),
    (lambda job: job["spec"].update(backoffLimit="2"), "'2' is not of type 'integer'"),
    (lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
     "'tokens' is not one of"),
    (lambda job: worker(job).update(replica=4), "'replica' was unexpected"),
    (lambda job: worker(job).pop("groupName"), "'groupName' is a required property"),
    (lambda job: worker(job)["rayStartParams"].update({"num-gpus": 1}), "1 is not of type 'str"),
    (lambda job: worker(job)["template"]["spec"]["containers"][0].update(envfrom=[]),
     "'envfrom' was unexpected"),
    (lambda job: worker(job)["template"]["spec"]["containers"][0]["resources"]["limits"].update(
        memory="32 GB"), "'32 GB' does not match"),
    (lambda job: job["metadata"].update(lables={}), "'lables' was unexpected"),
    (lambda job: job["metadata"].update(name="igd_ray"), "'igd_ray' does not match"),
    (lambda job: job.update(kind="RayJobs"), "'RayJob' was expected"),
], ids=range(11))
def test_a_slip_is_found(job, schema, spoil, said) -> None:
    spoil(job)
    found = problems(job, schema)
    assert found and said in found[0]


def test_a_config_map_holds_text_alone(config_map) -> None:
    config_map["data"]["more"] = {"a": 1}
    assert problems(config_map, CONFIG_MAP) == ["$.data.more: {'a': 1} is not of type 'string'"]


def test_defaults_come_before_the_checks(job, schema) -> None:
    del worker(job)["maxReplicas"]  # required, and the schema has a default
    assert problems(job, schema) == []


def test_it_starts_our_job_with_our_configuration(job, config_map, tmp_path) -> None:
    python, flag, module, file = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    head = pods(job)["head"]
    mount, = head["containers"][0]["volumeMounts"]
    volume, = head["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert Path(file).parent == Path(mount["mountPath"])
    written = tmp_path / "train_all.yaml"
    written.write_text(config_map["data"][Path(file).name])
    assert command_line("train-all", written) == command_line(
        "train-all", ROOT / "jobs" / "train_all.paper.yaml")


def test_ray_is_the_version_that_is_pinned(job) -> None:
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_a_run_is_repeated_and_the_cluster_does_not_stay(job) -> None:
    spec = job["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 600


def test_ray_asks_for_a_token_and_has_no_address_outside(job) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    assert "RAY_AUTH" not in MANIFEST.read_text()  # the operator's to set


def test_no_pod_has_more_rights_than_it_needs(job) -> None:
    for name, pod in pods(job).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
            assert container["resources"]["requests"] and container["resources"]["limits"], name
    assert len({pod["containers"][0]["image"] for pod in pods(job).values()}) == 1


def test_the_head_trains_nothing_and_the_workers_have_gpus(job) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in pods(job)["head"]["containers"][0]["resources"]["limits"]
    assert pods(job)["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker(job)["minReplicas"] <= worker(job)["replicas"] <= worker(job)["maxReplicas"]


def secret_names(job: dict[str, Any]) -> Iterator[str]:
    for name in ("head", "gpu"):
        for source in pods(job)[name]["containers"][0]["envFrom"]:
            yield source["secretRef"]["name"]


def test_the_secret_of_the_documentation_is_what_the_storage_reads(job, monkeypatch) -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    command = re.search(r"^kubectl create secret generic (\S+) (.*)$", text, re.M)
    assert command and set(secret_names(job)) == {command[1]}
    names = [*re.findall(r"--from-literal=(\w+)=", command[2]), "AWS_ENDPOINT_URL"]
    assert "AWS_ENDPOINT_URL" in text
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in names:
        monkeypatch.setenv(name, f"http://{name.lower()}")
    monkeypatch.setattr(s3, "_session", s3._session.__wrapped__)  # reads the environment anew
    assert s3._settings() == {
        "access_key_id": "http://aws_access_key_id", "token": "",
        "secret_access_key": "http://aws_secret_access_key",
        "region": "http://aws_default_region", "endpoint": "http://aws_endpoint_url"}


def test_the_documentation_names_what_there_is(job) -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    for path in set(re.findall(r"\b(?:jobs|deploy)/[\w./-]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
    assert f"job/{job['metadata']['name']}\n" in text
    assert f"rayjob {job['metadata']['name']}\n" in text


def test_the_image_has_what_the_manifest_starts_and_no_more(job) -> None:
    steps = (ROOT / "deploy" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {path for line in re.findall(r"^COPY (.*) /\S*$", steps, re.M)
              for path in line.split()}
    assert ignored[0] == "*" and copied == {line[1:] for line in ignored if line[0] == "!"}
    assert all((ROOT / path).exists() for path in copied)
    assert "USER 1000:1000\n" in steps and "ENV PYTHONPATH=/app " in steps
    module = shlex.split(job["spec"]["entrypoint"])[2].split(".")
    assert module[0] in copied and (ROOT / f"{'/'.join(module)}.py").is_file()
    base, = re.findall(r"^ARG BASE=python:([\d.]+)-", steps, re.M)
    assert f">={base}" in (ROOT / "pyproject.toml").read_text()
