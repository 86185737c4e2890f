"""Manifests for KServe and plain Kubernetes: what the schemas accept, what the server takes, what agrees with it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import grpc
import jsonschema
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nets import MODELS
from running import in_process_server
from test_exports import onnxplain

from onnxplain.cli.serve import serve
from onnxplain.errors import InputError, Unavailable, UsageError
from onnxplain.exports import kserve, kubernetes, pod
from onnxplain.exports.pod import Sizes
from onnxplain.server.options import ServerOptions
from onnxplain.sources import REGISTRIES

DATA = Path(__file__).parents[1] / "data" / "kserve"
IMAGE = "registry.example:5000/a@sha256:00"


def schema(kind: str) -> dict:
    version = {"ServingRuntime": "V1alpha1", "InferenceService": "V1beta1"}[kind]
    return {**json.loads((DATA / "schema.json").read_text()), "$ref": f"#/$defs/{version}{kind}"}


def check(manifest: dict) -> None:
    jsonschema.Draft202012Validator(schema(manifest["kind"])).validate(manifest)


def on_kserve(*options: object) -> list[dict]:
    out = onnxplain(MODELS / "digits_gru", "--kserve", "--storage-uri", "s3://bucket/models", *options)
    return list(yaml.safe_load_all(out))


def on_kubernetes(storage: str = "s3://bucket/models") -> dict[str, dict]:
    """By kind, the services by name; and under "flags" the variables of the generated ConfigMap."""
    files = kubernetes.manifests(storage, IMAGE, Sizes())
    found = {}
    for name, content in files.items():
        if name.endswith(".env"):
            lines = [line for line in content.splitlines() if not line.startswith("#")]
            found["flags"] = dict(line.split("=", 1) for line in lines)
            continue
        for document in yaml.safe_load_all(content):
            kind = document["kind"]
            found[document["metadata"]["name"] if kind == "Service" else f"{name}" if "custom" in name else kind] = (
                document
            )
    return found


def variables(container: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def pods() -> dict[str, tuple[dict, dict, dict[str, str]]]:
    """Every pod that runs our server: its spec, its container, its variables; the first port first."""
    runtime, service = on_kserve()
    (explained,) = on_kserve("--explainer")
    serving = {**runtime["spec"], **service["spec"]["predictor"]}
    explainer = explained["spec"]["explainer"]
    plain = on_kubernetes()
    deployment = plain["Deployment"]["spec"]["template"]["spec"]
    return {
        "kserve": (serving, runtime["spec"]["containers"][0], variables(runtime["spec"]["containers"][0])),
        "explainer": (explainer, explainer["containers"][0], variables(explainer["containers"][0])),
        "kubernetes": (deployment, deployment["containers"][0], plain["flags"]),
    }


PODS = pods()
each_pod = pytest.mark.parametrize("spec, container, flags", PODS.values(), ids=PODS)


# What holds for every pod


@each_pod
def test_the_server_takes_the_flags_that_it_is_given(spec, container, flags, monkeypatch, tmp_path):
    known = {parameter.envvar: parameter for parameter in serve.params if parameter.envvar}
    ours = {name: value for name, value in flags.items() if name.startswith("ONNXPLAIN_")}
    assert ours.keys() <= known.keys() | {"ONNXPLAIN_MODELS"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    words = container.get("args") or container["command"][2].removeprefix("exec onnxplain ").split()
    assert words[0] == "serve" and words[1:] in ([], ["/mnt/models"])
    context: click.Context = serve.make_context("serve", words[1:])
    given = {name: value for name, value in context.params.items() if name in ServerOptions.__dataclass_fields__}
    options = ServerOptions(**{name: value for name, value in given.items() if value is not None and name != "control"})
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options.insecure and options.host == "0.0.0.0"
    assert ports.get("metrics", options.metrics_port) == options.metrics_port
    assert spec["terminationGracePeriodSeconds"] >= options.drain_delay + options.drain_timeout + 10
    assert options.drain_delay >= 5  # a balancer needs that long to look away
    assert options.memory_budget == 0  # the server reads the container's limit


@each_pod
def test_probes_ask_the_port_and_readiness_is_apart_from_liveness(spec, container, flags):
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["grpc"]["port"] for probe in probes.values()} == {int(flags["ONNXPLAIN_PORT"])}
    assert "service" not in probes["readiness"]["grpc"]
    assert probes["liveness"]["grpc"]["service"] == probes["startup"]["grpc"]["service"] == pod.ALIVE
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 120
    assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] >= 60
    unready = probes["readiness"]["periodSeconds"] * probes["readiness"]["failureThreshold"]
    assert unready <= pod.DRAIN_DELAY + pod.DRAIN_TIMEOUT


def test_a_server_whose_registry_is_down_is_alive_and_not_ready():
    class Silent:
        name, problems = "shop", {}

        def releases(self):
            raise Unavailable("closed")

    async def story() -> tuple[int, int]:
        async with (
            in_process_server(sources=[Silent()], wait=False) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            ask = health_pb2_grpc.HealthStub(channel).Check
            alive = await ask(health_pb2.HealthCheckRequest(service=pod.ALIVE), timeout=5)
            ready = await ask(health_pb2.HealthCheckRequest(), timeout=5)
            return alive.status, ready.status

    serving = health_pb2.HealthCheckResponse
    assert asyncio.run(story()) == (serving.SERVING, serving.NOT_SERVING)


@each_pod
def test_nothing_runs_as_root_or_writes_outside_its_two_folders(spec, container, flags):
    context = container["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == context["runAsGroup"] == pod.USER
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in spec["volumes"]}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert writable == {"/tmp", flags["XDG_CACHE_HOME"]}
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    assert f"--uid {pod.USER}" in dockerfile


@each_pod
def test_what_is_asked_for_is_the_limit(spec, container, flags):
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("weights", [0, 10 * 2**20, 2**30, 20 * 2**30])
def test_a_server_in_such_a_container_gives_the_models_sessions_what_they_take(weights, monkeypatch):
    sizes = Sizes(weights, stream=2**24)
    monkeypatch.setattr("onnxplain.server.options.memory_bytes", lambda: sizes.memory)
    assert ServerOptions(provider="cpu").session_bytes >= sizes.sessions
    assert sizes.memory % pod.STEP == 0 and sizes.memory >= 2 * pod.BASE


def test_ports_and_queues_are_the_servers():
    options = ServerOptions()
    assert (options.port, options.metrics_port) == (pod.GRPC_PORT, pod.METRICS_PORT)
    assert options.queue_rows == kubernetes.QUEUE_ROWS


# KServe


def test_manifests_are_what_kserve_accepts():
    runtime, service = on_kserve()
    check(runtime)
    check(service)
    container = runtime["spec"]["containers"][0]
    assert container["ports"][0] == {"name": "h2c", "containerPort": 8081, "protocol": "TCP"}
    assert runtime["spec"]["supportedModelFormats"] == [{"name": "onnx", "version": "1", "autoSelect": False}]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == variables(container)["ONNXPLAIN_METRICS_PORT"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"] and model["storageUri"] == "s3://bucket/models"
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert service["metadata"]["name"] == "digits-gru"


def test_an_explainer_stands_beside_any_predictor_and_ignores_what_kserve_appends(tmp_path):
    (service,) = on_kserve("--explainer")
    check(service)
    assert "runtime" not in service["spec"]["predictor"]["model"]
    container = service["spec"]["explainer"]["containers"][0]
    assert container["name"] == "kserve-container" and variables(container)["STORAGE_URI"] == "s3://bucket/models"
    assert container["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]
    shell, option, script = container["command"]
    (tmp_path / "onnxplain").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "onnxplain").chmod(0o755)
    appended = ["--model_name", "digits-gru", "--predictor_host", "h.ns", "--http_port", "8080"]  # explainer_custom.go
    said = subprocess.run(
        [shell, option, script, *appended], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert said.stdout == "serve /mnt/models\n"


def test_a_name_that_kserve_does_not_route_is_no_explainers():
    with pytest.raises(UsageError, match="--explainer"):
        kserve.manifests("a.b", "s3://b/m", IMAGE, Sizes(), explainer=True)
    assert kserve.manifests("a.b", "s3://b/m", IMAGE, Sizes())


@pytest.mark.parametrize("explainer", [False, True])
@pytest.mark.parametrize("where", [(), ("spec",), ("spec", "predictor"), ("spec", "predictor", "model")])
def test_the_schema_refuses_unknown_fields(where, explainer):
    *_, service = on_kserve(*(["--explainer"] if explainer else []))
    place = service
    for key in where:
        place = place[key]
    place["storageURI"] = "s3://b"  # a misspelling: KServe would drop it in silence
    with pytest.raises(jsonschema.ValidationError):
        check(service)


@pytest.mark.parametrize(
    "uri", ["pvc://claim/models", "s3://b/m?x=1&y=2", "https://h/%22#frag", 'gs://b/"quoted"', "gs://b/{name}:x"]
)
@pytest.mark.parametrize("explainer", [False, True])
def test_any_uri_comes_back_from_the_yaml(uri, explainer):
    files = kserve.manifests("m", uri, IMAGE, Sizes(), explainer)
    service = yaml.safe_load(files["inferenceservice.yaml"])
    assert service["spec"]["predictor"]["model"]["storageUri"] == uri
    container = (
        service["spec"]["explainer"]["containers"][0]
        if explainer
        else yaml.safe_load(files["servingruntime.yaml"])["spec"]["containers"][0]
    )
    assert container["image"] == IMAGE and variables(container).get("STORAGE_URI", uri) == uri


@pytest.mark.parametrize("uri", ["models", "/mnt/models", "s3://b/a b", "s3://b/\nspec: {}", "s3://"])
def test_what_is_no_uri_is_refused(uri):
    for write in (
        lambda: kserve.manifests("m", uri, IMAGE, Sizes()),
        lambda: kubernetes.manifests(uri, IMAGE, Sizes()),
    ):
        with pytest.raises(UsageError, match="storage-uri"):
            write()


@pytest.mark.parametrize("name", ["mobilenet_v2", "3D.Net", "A" * 100, "x_", "_"])
def test_service_names_are_dns_labels(name):
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", kserve.service_name(name))
    assert len(kserve.service_name(name)) <= 40


def test_manifests_can_be_written(tmp_path):
    arguments = (MODELS / "digits_gru", "--kserve", "--storage-uri", "s3://b/m", "--out", tmp_path)
    onnxplain(*arguments)
    assert {p.name for p in tmp_path.iterdir()} == {"servingruntime.yaml", "inferenceservice.yaml"}
    assert "as it was" in onnxplain(*arguments)
    with pytest.raises(InputError, match="--force"):
        onnxplain(*arguments, "--image", "other")


# Plain Kubernetes


def selected(manifest: dict) -> dict[str, str]:
    """The labels that a manifest goes by."""
    spec = manifest["spec"]
    chosen = spec.get("podSelector") or spec["selector"]
    return chosen.get("matchLabels", chosen)


def test_everything_goes_by_the_labels_of_the_pods_and_nothing_by_none():
    found = on_kubernetes()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    kinds = ("Deployment", "onnxplain", "onnxplain-grpc", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    assert labels and all(selected(found[kind]) == labels for kind in kinds)


def test_services_reach_ports_that_the_container_has():
    found = on_kubernetes()
    container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    for service in ("onnxplain", "onnxplain-grpc"):
        for port in found[service]["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]
    assert found["onnxplain-grpc"]["spec"]["clusterIP"] == "None"
    admitted = {port["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert admitted == set(named.values())
    assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in named
    annotations = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(named["metrics"])


def test_metrics_that_scale_exist():
    text = (Path(pod.__file__).parents[1] / "server/telemetry/metrics.py").read_text()
    found = on_kubernetes()
    pods_metric = [
        m["pods"]["metric"]["name"] for m in found["HorizontalPodAutoscaler"]["spec"]["metrics"] if "pods" in m
    ]
    query = found["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    assert pods_metric and all(name in text and name in query for name in pods_metric)


@pytest.mark.parametrize(
    "storage, variable, port",
    [
        ("pvc://claim/a/b", ("ONNXPLAIN_MODELS", "/models"), None),
        ("s3://bucket/models", ("ONNXPLAIN_REGISTRY", "s3://bucket/models"), 443),
        ("oci://ghcr.io/org/net:3", ("ONNXPLAIN_REGISTRY", "oci://ghcr.io/org/net:3"), 443),
        ("oci+http://registry:5000/net:3", ("ONNXPLAIN_REGISTRY", "oci+http://registry:5000/net:3"), 5000),
        ("mlflow+http://mlflow?model=a@b", ("ONNXPLAIN_REGISTRY", "mlflow+http://mlflow?model=a@b"), 80),
        ("mlflow+https://mlflow:5000?model=a@b", ("ONNXPLAIN_REGISTRY", "mlflow+https://mlflow:5000?model=a@b"), 5000),
    ],
)
def test_models_come_from_the_volume_or_the_registry_and_the_network_lets_that_pass(storage, variable, port):
    found = on_kubernetes(storage)
    assert found["flags"][variable[0]] == variable[1]
    egress = {entry["port"] for rule in found["NetworkPolicy"]["spec"]["egress"] for entry in rule["ports"]}
    assert egress == {53} | ({port} if port else set())
    spec = found["Deployment"]["spec"]["template"]["spec"]
    mounts = {m["name"]: m for m in spec["containers"][0]["volumeMounts"]}
    if port is None:
        assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "a/b"}
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts)


@pytest.mark.parametrize("scheme", [scheme for scheme in REGISTRIES if scheme not in kubernetes.LOCAL])
def test_what_the_image_needs_for_a_registry_is_an_extra(scheme):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert kubernetes.EXTRAS.get(scheme, scheme) in project["optional-dependencies"]


def test_a_kustomization_names_all_files_beside_it(tmp_path):
    onnxplain(MODELS / "digits_gru", "--kubernetes", tmp_path, "--storage-uri", "s3://b/m")
    for file in tmp_path.rglob("kustomization.yaml"):
        base = yaml.safe_load(file.read_text())
        named = {*base["resources"], *(e for g in base.get("configMapGenerator", []) for e in g["envs"])}
        assert named == {entry.name for entry in file.parent.iterdir() if entry.is_file()} - {"kustomization.yaml"}
    arguments = (MODELS / "digits_gru", "--kubernetes", tmp_path, "--storage-uri", "s3://b/m")
    assert onnxplain(*arguments).count("as it was") == len(list(tmp_path.iterdir()))
    with pytest.raises(InputError, match="--force"):
        onnxplain(*arguments, "--image", "other")


@pytest.mark.parametrize("components", [False, True])
def test_kubectl_builds_it(components, tmp_path):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    onnxplain(MODELS / "digits_gru", "--kubernetes", tmp_path, "--storage-uri", "pvc://claim")
    if components:
        file = tmp_path / "kustomization.yaml"
        file.write_text(re.sub(r"^# (components:|  - )", r"\1", file.read_text(), flags=re.M))
    built = subprocess.run([kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(built.stdout)]
    assert ("ScaledObject" in kinds, "PodMonitor" in kinds) == (components, components)
    assert ("HorizontalPodAutoscaler" in kinds) != components  # never two autoscalers of one deployment
