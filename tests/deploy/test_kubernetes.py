"""The manifests against the schemas of KubeRay and Kubernetes, and the code they start."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from igd.errors import ConfigError
from igd.pipelines.cluster import SCORER_CPUS
from igd.serve import door
from igd.storage import s3
from jobs.command import command_line

ROOT = Path(__file__).parents[2]
TRAIN, NIGHT, SERVE = (ROOT / "deploy" / "kubernetes" / f"{name}.yaml"
                       for name in ("train-all", "score-nightly", "serve"))
KUBERNETES = "1.37"
"""The version whose schema the kinds of Kubernetes itself are checked against."""
SHARED = Path(os.environ.get("IGD_SHARED", ROOT.parent / "shared"))
CRDS = SHARED / "kuberay-crds" / "v1.7.0"

OBJECT_META = {"type": "object", "oneOf": [{"required": ["name"]}, {"required": ["generateName"]}],
               "properties": {
    "name": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$"},
    "generateName": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,40}-$"},
    "namespace": {"type": "string"},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}}
"""A CRD leaves its resource's own metadata to Kubernetes."""

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


def schema_of(kind: str) -> dict[str, Any]:
    """What KubeRay wants of a kind of resource, its name and metadata included."""
    crd = CRDS / f"{kind.lower()}s.yaml"
    if not crd.exists():
        pytest.skip(f"no {crd}: set IGD_SHARED to the folder with kuberay-crds")
    document = yaml.load(crd.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    served, = (one for one in document["spec"]["versions"] if one["name"] == "v1")
    return {**served["schema"]["openAPIV3Schema"], "required": ["apiVersion", "kind", "spec"],
            "properties": {**served["schema"]["openAPIV3Schema"]["properties"],
                           "apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind},
                           "metadata": OBJECT_META}}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return schema_of("RayJob")


def documents(manifest: Path) -> list[dict[str, Any]]:
    # what YAML's aliases share comes apart
    return [copy.deepcopy(one) for one in yaml.safe_load_all(manifest.read_text())]


@pytest.fixture
def job() -> dict[str, Any]:
    """The RayJob that trains."""
    return documents(TRAIN)[1]


@pytest.fixture
def night() -> dict[str, dict[str, Any]]:
    """What scores every night, by kind; of ConfigMaps by what they hold."""
    return {next(iter(one["data"])) if one["kind"] == "ConfigMap" else one["kind"]: one
            for one in documents(NIGHT)}


@pytest.fixture
def night_job(night) -> dict[str, Any]:
    """The RayJob that the CronJob creates."""
    return copy.deepcopy(yaml.safe_load(night["rayjob.yaml"]["data"]["rayjob.yaml"]))


@pytest.fixture
def service() -> dict[str, Any]:
    """The RayService that serves."""
    return documents(SERVE)[0]


@pytest.fixture(params=["job", "night_job"])
def any_job(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return found


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return {"submitter": job["spec"]["submitterPodTemplate"]["spec"],
            "head": cluster["headGroupSpec"]["template"]["spec"],
            **{group["groupName"]: group["template"]["spec"]
               for group in cluster["workerGroupSpecs"]}}


def test_a_job_is_as_kuberay_wants_it(any_job, schema) -> None:
    assert problems(any_job, schema) == []


@pytest.mark.parametrize("manifest", [TRAIN, NIGHT], ids=lambda path: path.stem)
def test_all_else_is_as_kubernetes_wants_it(manifest) -> None:
    for one in documents(manifest):
        if one["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize(("kind", "spoil", "said"), [
    ("CronJob", lambda spec: spec.update(timezone="Etc/UTC"), "'timezone' was unexpected"),
    ("CronJob", lambda spec: spec.update(startingDeadlineSeconds="6h"), "'6h' is not of type"),
    ("CronJob", lambda spec: spec["jobTemplate"]["spec"]["template"]["spec"].update(
        serviceAccount_name="a"), "'serviceAccount_name' was unexpected"),
], ids=range(3))
def test_a_slip_in_what_is_no_ray_job_is_found(night, kind, spoil, said) -> None:
    spoil(night[kind]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError, match=said):
        kubernetes_validate.validate(night[kind], KUBERNETES, strict=True)


def test_a_config_map_holds_text_alone(night) -> None:
    night["rayjob.yaml"]["data"]["more"] = {"a": 1}
    with pytest.raises(kubernetes_validate.ValidationError, match=r"\{'a': 1\} is not of type"):
        kubernetes_validate.validate(night["rayjob.yaml"], KUBERNETES, strict=True)


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


def test_defaults_come_before_the_checks(job, schema) -> None:
    del worker(job)["maxReplicas"]  # required, and the schema has a default
    assert problems(job, schema) == []


def started(job: dict[str, Any], config_map: dict[str, Any], folder: Path) -> tuple[str, Path]:
    """The module that a RayJob starts, and the configuration that it finds on the head."""
    python, flag, module, file = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    head = pods(job)["head"]
    mount, = head["containers"][0]["volumeMounts"]
    volume, = head["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert Path(file).parent == Path(mount["mountPath"])
    written = folder / Path(file).name
    written.write_text(config_map["data"][written.name])
    return module, written


def test_training_is_our_job_with_our_configuration(job, tmp_path) -> None:
    module, file = started(job, documents(TRAIN)[0], tmp_path)
    assert module == "jobs.train_all"
    assert command_line("train-all", file) == command_line(
        "train-all", ROOT / "jobs" / "train_all.paper.yaml")


def test_a_night_is_our_job_with_our_configuration(night, night_job, tmp_path) -> None:
    module, file = started(night_job, night["score_nightly.yaml"], tmp_path)
    assert module == "jobs.score_nightly"
    assert command_line("score", file, date="yesterday") == command_line(
        "score", ROOT / "jobs" / "score_nightly.yaml", date="yesterday")


def test_ray_is_the_version_that_is_pinned(any_job) -> None:
    assert any_job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_every_night_creates_one_job_and_may_do_nothing_else(night) -> None:
    cron = night["CronJob"]["spec"]
    assert cron["timeZone"] == "Etc/UTC" and cron["concurrencyPolicy"] == "Forbid"
    hour = int(cron["schedule"].split()[1])
    assert hour * 3600 + cron["startingDeadlineSeconds"] < 86400  # or "yesterday" is another day
    assert 0 < cron["successfulJobsHistoryLimit"] + cron["failedJobsHistoryLimit"] < 10
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    verb, option = pod["containers"][0]["command"][1:]
    mount, = pod["containers"][0]["volumeMounts"]
    volume, = pod["volumes"]
    assert verb == "create" and option == f"--filename={mount['mountPath']}/rayjob.yaml"
    assert volume == {"name": mount["name"],
                      "configMap": {"name": night["rayjob.yaml"]["metadata"]["name"]}}
    assert night["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    account, = night["RoleBinding"]["subjects"]
    assert night["RoleBinding"]["roleRef"]["name"] == night["Role"]["metadata"]["name"]
    assert account["name"] == night["ServiceAccount"]["metadata"]["name"] == (
        pod["serviceAccountName"])
    assert night["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is True
    assert_few_rights("create", pod)


def test_a_nights_job_does_not_stay_and_ends_before_the_next(night_job) -> None:
    spec = night_job["spec"]
    assert "shutdownAfterJobFinishes" not in spec  # the operator takes the one or the other
    after = {(rule["policy"], *rule["condition"].items()) for rule in
             spec["deletionStrategy"]["deletionRules"]}
    for end in (("jobStatus", "SUCCEEDED"), ("jobStatus", "FAILED"),
                ("jobDeploymentStatus", "Failed")):
        waits = {policy: dict(rest)["ttlSeconds"] for policy, *rest in after if end in rest}
        assert 0 < waits["DeleteCluster"] <= 600 < waits["DeleteSelf"] <= 7 * 86400
    assert spec["activeDeadlineSeconds"] < 86400 and spec["backoffLimit"] > 0


def test_a_run_is_repeated_and_the_cluster_does_not_stay(job) -> None:
    spec = job["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 600


def test_ray_asks_for_a_token_and_has_no_address_outside(any_job) -> None:
    cluster = any_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    assert "RAY_AUTH" not in str(any_job)  # the operator's to set


def assert_few_rights(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True, name
    assert pod["securityContext"]["runAsUser"] > 0, name
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
        assert container["resources"]["requests"] and container["resources"]["limits"], name


def test_no_pod_has_more_rights_than_it_needs(any_job) -> None:
    for name, pod in pods(any_job).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert_few_rights(name, pod)
    assert len({pod["containers"][0]["image"] for pod in pods(any_job).values()}) == 1


def test_the_head_trains_nothing_and_the_workers_have_gpus(job) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in pods(job)["head"]["containers"][0]["resources"]["limits"]
    assert pods(job)["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker(job)["minReplicas"] <= worker(job)["replicas"] <= worker(job)["maxReplicas"]


def test_scoring_needs_no_gpu_and_the_head_scores_nothing(night_job) -> None:
    assert night_job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "gpu" not in str(night_job)


def secret_names(job: dict[str, Any]) -> Iterator[str]:
    for name, pod in pods(job).items():
        if name != "submitter":
            for source in pod["containers"][0]["envFrom"]:
                yield source["secretRef"]["name"]


def test_the_secret_of_the_documentation_is_what_the_storage_reads(any_job, monkeypatch) -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    command = re.search(r"^kubectl create secret generic (\S+) (.*)$", text, re.M)
    assert command and set(secret_names(any_job)) == {command[1]}
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


def test_the_documentation_names_what_there_is(job, night) -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    for path in set(re.findall(r"\b(?:jobs|deploy)/[\w./-]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
    assert f"job/{job['metadata']['name']}\n" in text
    assert f"rayjob {job['metadata']['name']}\n" in text
    assert f"cronjob/{night['CronJob']['metadata']['name']} " in text


def test_the_image_has_what_the_manifest_starts_and_no_more(any_job) -> None:
    steps = (ROOT / "deploy" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {path for line in re.findall(r"^COPY (.*) /\S*$", steps, re.M)
              for path in line.split()}
    assert ignored[0] == "*" and copied == {line[1:] for line in ignored if line[0] == "!"}
    assert all((ROOT / path).exists() for path in copied)
    assert "USER 1000:1000\n" in steps and "ENV PYTHONPATH=/app " in steps
    module = shlex.split(any_job["spec"]["entrypoint"])[2].split(".")
    assert module[0] in copied and (ROOT / f"{'/'.join(module)}.py").is_file()
    base, = re.findall(r"^ARG BASE=python:([\d.]+)-", steps, re.M)
    assert f">={base}" in (ROOT / "pyproject.toml").read_text()


def test_a_service_is_as_kuberay_wants_it(service) -> None:
    wanted = schema_of("RayService")
    assert problems(service, wanted) == []
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(replica=4)
    assert "'replica' was unexpected" in problems(service, wanted)[0]


def test_a_service_serves_our_application_as_configured(service, monkeypatch) -> None:
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    application, = config["applications"]
    module, _, name = application["import_path"].partition(":")
    monkeypatch.setenv("IGD_SERVE_TOKENS", "app:0123456789abcdef")
    built = getattr(importlib.import_module(module), name)(application["args"])
    endpoint = built._bound_deployment.init_args[0]
    assert endpoint.models == "s3://CHANGE-ME/models" and endpoint.tokens
    assert f"{service['metadata']['name']}-serve-svc" in endpoint.hosts  # as the operator calls it
    monkeypatch.delenv("IGD_SERVE_TOKENS")
    with pytest.raises(ConfigError, match="token"):
        getattr(importlib.import_module(module), name)(application["args"])


def test_a_service_has_a_token_few_rights_and_room_for_its_scorers(service) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    head, group = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == version("ray")
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    assert head["rayStartParams"]["num-cpus"] == "0"
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    for name, pod in (("head", head["template"]["spec"]), ("worker", group["template"]["spec"])):
        assert_few_rights(name, pod)
        container = pod["containers"][0]
        assert {"name": "serve", "containerPort": port} in container["ports"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        assert door.ENVIRONMENT.items() <= env.items()
        secret, = (one["valueFrom"]["secretKeyRef"] for one in container["env"]
                   if one["name"] == "IGD_SERVE_TOKENS")
        assert (f"kubectl create secret generic {secret['name']} --from-file={secret['key']}="
                in (ROOT / "deploy" / "README.md").read_text())
    args = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert args["max_scorers"] * SCORER_CPUS <= group["maxReplicas"] * cpus
