"""The Helm chart, rendered and linted by Helm's own library, its objects checked by Kubernetes' schemas."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError
from pydantic import ValidationError

from gateway.config import Config

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "wanstream"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VERSIONS = ("1.31", "1.37")
CUSTOM = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
UNCHECKED = {"HTTPRoute", "BackendTrafficPolicy"}  # no schema of them is to be had

Objects = dict[str, dict[str, Any]]

EVERYTHING: dict[str, Any] = {
    "existingSecret": "wanstream",
    "gpu": {"product": "NVIDIA-H100-80GB-HBM3", "runtimeClassName": "nvidia"},
    "engines": {"createClaim": True, "storageClassName": "shared"},
    "assets": {"existingClaim": "uploads"},
    "ingress": {"enabled": True, "host": "video.example.org", "tlsSecretName": "tls"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
    "autoscaling": {"mode": "hpa"},
    "metrics": {"podMonitor": {"enabled": True}, "rules": {"enabled": True}},
    "networkPolicy": {"enabled": True},
    "podLabels": {"team": "video"},
}
BUILDING: dict[str, Any] = {
    "engines": {"createClaim": True, "buildJob": {"enabled": True, "engineSet": "longlive_bf16_wan"}},
    "autoscaling": {"mode": "hpa"},
}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as chart:
        yield chart


def rendered(chart: Chart, values: Mapping[str, Any]) -> Objects:
    """What is installed in namespace `video` as release `demo`, by kind; `TurnKIND` for the TURN server's."""
    chart.validate_schema(dict(values))
    found: Objects = {}
    for name, text in chart.render(dict(values), name="demo", namespace="video").items():
        if name.endswith(".yaml"):
            for document in filter(None, yaml.safe_load_all(text)):
                headless = document.get("spec", {}).get("clusterIP") == "None"
                of_turn = document["metadata"]["name"].endswith("-turn")
                found["Headless" * headless + "Turn" * of_turn + document["kind"]] = document
    return found


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()))


def all_values() -> list[Any]:
    cases = [pytest.param(yaml.safe_load(path.read_text()), id=path.stem) for path in EXAMPLES]
    cases += [pytest.param({}, id="defaults"), pytest.param(BUILDING, id="building")]
    return [*cases, pytest.param(EVERYTHING, id="everything")]


def pod(objects: Objects) -> dict[str, Any]:
    return dict(objects["Deployment"]["spec"]["template"]["spec"])


def containers(objects: Objects) -> dict[str, dict[str, Any]]:
    spec = pod(objects)
    return {container["name"]: container for container in [*spec["initContainers"], *spec["containers"]]}


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """With what Kubernetes puts in place of `$(POD_IP)`."""
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    return {name: value.replace("$(POD_IP)", "10.1.2.3") for name, value in given.items()}


# Valid


@pytest.mark.parametrize("values", all_values())
def test_helm_has_nothing_to_say(values: dict[str, Any]) -> None:
    report = lint(CHART, values, strict=True, kube_version="v1.31.0")

    assert report["errors"] == []
    assert [m for m in report["messages"] if m["error"] != "icon is recommended"] == []


@pytest.mark.parametrize("values", all_values())
def test_everything_rendered_is_valid_in_old_and_new_kubernetes(chart: Chart, values: dict[str, Any]) -> None:
    objects = rendered(chart, values)

    for document in objects.values():
        kind = document["kind"]
        if kind in CUSTOM:
            CUSTOM[kind].model_validate(document)
        elif kind not in UNCHECKED:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
    assert {"Deployment", "Service", "PodDisruptionBudget", "ServiceAccount"} < objects.keys()


def test_the_checks_see_what_is_wrong(chart: Chart) -> None:
    objects = rendered(chart, example("cloud-turn"))
    budget = copy.deepcopy(objects["PodDisruptionBudget"])
    budget["spec"]["maxUnavailble"] = 1
    scaled = copy.deepcopy(objects["ScaledObject"])
    scaled["spec"]["minReplicaCount"] = "one"

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, VERSIONS[0], strict=True)
    with pytest.raises(ValidationError):
        ScaledObject.model_validate(scaled)


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 3},
        {"media": {"mode": "bridge"}},
        {"gateway": {"port": 0}},
        {"gateway": {"locked": "on"}},
        {"media": {"ports": "all"}},
        {"triton": {"sharedMemory": "lots"}},
        {"ingress": {"enabled": True}},
        {"httpRoute": {"enabled": True}},
        {"autoscaling": {"mode": "keda"}},
        {"engines": {"buildJob": {"enabled": True, "engineSet": "longlive_bf16_wan"}}},
        {"engines": {"createClaim": True, "buildJob": {"enabled": True}}},
        {"turn": {"enabled": True}},
    ],
    ids=lambda values: json.dumps(values),
)
def test_values_that_make_no_sense_are_refused(chart: Chart, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        rendered(chart, values)


def test_every_value_is_in_the_schema(chart: Chart) -> None:
    def names(values: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
        if "properties" in schema:
            assert schema["additionalProperties"] is False
            assert values.keys() <= schema["properties"].keys()
            for name, value in values.items():
                if isinstance(value, dict):
                    names(value, schema["properties"][name])

    schema = chart.schema
    assert schema is not None
    names(chart.values, schema)


# What it means


def test_a_pod_is_a_gateway_with_triton_as_its_sidecar_and_the_gpu(chart: Chart) -> None:
    objects = rendered(chart, example("cloud-turn"))
    found = containers(objects)

    assert list(found) == ["triton", "gateway"]
    assert found["triton"]["restartPolicy"] == "Always"
    assert found["triton"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in json.dumps(found["gateway"]["resources"])
    assert pod(objects)["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "CUDA_POOL_BYTES" not in variables(found["triton"])  # serve-triton reads what the engines need
    assert {"--grpc-address=127.0.0.1", "--http-address=127.0.0.1"} < set(found["triton"]["args"])


def test_both_sides_see_the_same_engines_read_only(chart: Chart) -> None:
    found = containers(rendered(chart, example("cloud-turn")))
    places = {variables(c)["WANSTREAM_ENGINES_DIR"] for c in found.values()}

    assert places == {"/shared/engines/NVIDIA-H100-80GB-HBM3-26.02"}
    for container in found.values():
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "engines")
        assert (mount["mountPath"], mount["readOnly"]) == ("/shared", True)


def test_without_engines_the_demonstration_is_made_first_and_shown(chart: Chart) -> None:
    found = containers(rendered(chart, {}))

    assert list(found) == ["demonstration", "triton", "gateway"]
    assert found["demonstration"]["command"] == ["wanstream-export", "longlive", "--demo", "--wait"]
    assert variables(found["gateway"])["PIPELINE"] == "longlive"
    assert {variables(c)["WANSTREAM_ENGINES_DIR"] for c in found.values()} == {"/data/engines"}


def test_shared_memory_is_there_and_no_port_is_taken_twice(chart: Chart) -> None:
    objects = rendered(chart, {})
    (memory,) = (v for v in pod(objects)["volumes"] if v["name"] == "shared-memory")
    triton = containers(objects)["triton"]
    ports = [argument.partition("=")[2] for argument in triton["args"] if "-port=" in argument]
    ports += [str(port["containerPort"]) for port in containers(objects)["gateway"]["ports"]]

    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in triton["volumeMounts"]
    assert sorted(ports) == sorted(set(ports))


def test_streams_end_before_kubernetes_loses_patience(chart: Chart) -> None:
    objects = rendered(chart, {"drainSeconds": 300})
    gateway = containers(objects)["gateway"]

    assert variables(gateway)["WANSTREAM_DRAIN_S"] == "300"
    patience = pod(objects)["terminationGracePeriodSeconds"]
    assert patience >= 300 + gateway["lifecycle"]["preStop"]["sleep"]["seconds"] + 10
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health"


def test_triton_is_asked_for_its_models_and_its_gpu(chart: Chart) -> None:
    triton = containers(rendered(chart, {"triton": {"httpPort": 9000}}))["triton"]
    command = ["python3", "-m", "streaming.triton.health", "9000"]

    assert "--http-port=9000" in triton["args"]
    assert triton["startupProbe"]["exec"]["command"] == command
    assert triton["livenessProbe"]["exec"]["command"] == command


@pytest.mark.parametrize("values", all_values())
def test_no_container_has_rights_or_secrets_that_it_does_not_need(
    chart: Chart, values: dict[str, Any]
) -> None:
    objects = rendered(chart, values)
    specs = [pod(objects), objects["Pod"]["spec"]]
    if "Job" in objects:
        specs.append(objects["Job"]["spec"]["template"]["spec"])

    assert "Secret" not in objects
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert (
                not [name for name in variables(container) if "TOKEN" in name] if "env" in container else True
            )
            if "envFrom" in container:
                assert container["name"] in ("gateway", "download")


def test_engines_are_built_while_no_pod_holds_the_gpu(chart: Chart) -> None:
    objects = rendered(chart, BUILDING)
    job = objects["Job"]["spec"]["template"]["spec"]
    steps = [*job["initContainers"], *job["containers"]]

    assert objects["Deployment"]["spec"]["replicas"] == 0
    assert "HorizontalPodAutoscaler" not in objects
    assert [step["command"][0] for step in steps] == [
        "download_models",
        "wanstream-export",
        "wanstream-build",
    ]
    assert ["nvidia.com/gpu" in json.dumps(step.get("resources", {})) for step in steps] == [
        False,
        False,
        True,
    ]
    claim = objects["PersistentVolumeClaim"]["metadata"]
    assert claim["annotations"]["helm.sh/resource-policy"] == "keep"
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    serving = containers(objects)["triton"]
    for spec in (job, pod(objects)):  # what is built there is found here
        (volume,) = (v for v in spec["volumes"] if v["name"] == "engines")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["name"]
    for step in steps:
        assert {"name": "engines", "mountPath": "/shared"} in step["volumeMounts"]
        assert variables(step)["WANSTREAM_ENGINES_DIR"] == variables(serving)["WANSTREAM_ENGINES_DIR"]


def test_a_viewer_s_requests_stay_with_one_pod(chart: Chart) -> None:
    route, ingress = rendered(chart, example("cloud-turn")), rendered(chart, example("single-node"))
    policy = route["BackendTrafficPolicy"]["spec"]
    annotations = ingress["Ingress"]["metadata"]["annotations"]

    (rule,) = route["HTTPRoute"]["spec"]["rules"]
    assert policy["targetRefs"][0]["name"] == route["HTTPRoute"]["metadata"]["name"]
    assert policy["loadBalancer"]["consistentHash"]["cookie"]["name"] == "wanstream-pod"
    assert annotations["nginx.ingress.kubernetes.io/affinity"] == "cookie"
    assert route["Service"]["spec"]["sessionAffinity"] == "ClientIP"
    # A full pod's 503 is tried elsewhere, and answers that go on are not cut (tests/routing).
    assert policy["retry"]["retryOn"]["httpStatusCodes"] == [503]
    assert "http_503" in annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"]
    assert rule["timeouts"] == {"request": "0s"}


def test_pods_share_what_viewers_upload_where_there_is_a_claim(chart: Chart) -> None:
    alone, sharing = containers(rendered(chart, {})), containers(rendered(chart, EVERYTHING))

    assert "DAYDREAM_SCOPE_ASSETS_DIR" not in variables(alone["gateway"])
    for container in (sharing["gateway"], sharing["triton"]):
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "assets")
        assert Config.from_env(variables(sharing["gateway"])).directories.assets.is_relative_to(
            mount["mountPath"]
        )


def test_pods_find_each_other_while_they_end(chart: Chart) -> None:
    objects = rendered(chart, {"gateway": {"port": 9000}})
    gateway = containers(objects)["gateway"]
    config = Config.from_env(variables(gateway))
    service = objects["HeadlessService"]

    assert config.node == "10.1.2.3:9000"
    assert config.peers == (f"{service['metadata']['name']}:9000",)
    assert service["spec"]["ports"][0]["port"] == 9000
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == objects["Service"]["spec"]["selector"]


def test_scaling_counts_the_viewers_of_this_release_alone(chart: Chart) -> None:
    objects = rendered(chart, example("cloud-turn"))
    (trigger,) = objects["ScaledObject"]["spec"]["triggers"]
    endpoints = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]

    ours = re.findall(r"(\w+)\{job=\"video/demo-wanstream\"", trigger["metadata"]["query"])
    assert ours == ["wanstream_sessions", "wanstream_offers_refused_total"]
    assert float(trigger["metadata"]["threshold"]) == 6
    assert "replicas" not in objects["Deployment"]["spec"]
    assert [endpoint["port"] for endpoint in endpoints] == ["http", "triton-metrics"]


def test_a_pod_loads_what_its_operator_chose_and_uses_the_ports_that_are_open(chart: Chart) -> None:
    values = {
        "gateway": {"loadParams": {"height": 320, "width": 576}, "locked": True},
        "media": {
            "ports": "50000-50199",
            "publicIP": "203.0.113.7",
            "turnURLs": ["turn:a", "turns:b"],
            "publishURL": "http://sfu/whip",
        },
        "networkPolicy": {"enabled": True},
    }
    objects = rendered(chart, values)
    config = Config.from_env(variables(containers(objects)["gateway"]))
    (media,) = (
        port
        for rule in objects["NetworkPolicy"]["spec"]["ingress"]
        for port in rule["ports"]
        if port["protocol"] == "UDP"
    )

    assert (config.pipeline, config.pipeline_params) == ("longlive", {"height": 320, "width": 576})
    assert config.locked is True
    assert config.turn_urls == ("turn:a", "turns:b")
    assert config.publish_url == "http://sfu/whip"
    assert [str(address) for address in config.public_ips] == ["203.0.113.7"]
    assert config.media_ports == range(media["port"], media["endPort"] + 1) == range(50000, 50200)


def test_the_relay_knows_the_secret_and_reaches_gateways_alone(chart: Chart, tmp_path: Path) -> None:
    """A program in coturn's place says what it was told."""
    objects = rendered(chart, example("cloud-turn"))
    deployment, policy = objects["TurnDeployment"]["spec"], objects["TurnNetworkPolicy"]["spec"]
    (relay,) = deployment["template"]["spec"]["containers"]
    program = tmp_path / "turnserver"
    program.write_text('#!/bin/sh\necho "$*"\ncat "$2"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TURN_SECRET": "geheim", "POD_IP": "10.1.2.3"}

    done = subprocess.run(relay["command"], capture_output=True, text=True, env=env, check=True)

    options, *lines = done.stdout.splitlines()
    assert "geheim" not in options
    assert {"use-auth-secret", "static-auth-secret=geheim", "relay-ip=10.1.2.3", "no-tcp-relay"} < set(lines)
    secrets = {entry["name"]: entry["valueFrom"] for entry in relay["env"] if entry["name"] == "TURN_SECRET"}
    assert secrets["TURN_SECRET"]["secretKeyRef"] == {"name": "wanstream", "key": "WANSTREAM_TURN_SECRET"}
    labels = deployment["template"]["metadata"]["labels"]
    assert objects["TurnService"]["spec"]["selector"].items() <= labels.items()
    assert {port["protocol"] for port in objects["TurnService"]["spec"]["ports"]} == {"UDP", "TCP"}
    # Who lets in what the relay sends, and whom it may send to, mean each other.
    (media,) = (
        rule
        for rule in objects["NetworkPolicy"]["spec"]["ingress"]
        if "from" in rule and "endPort" in rule["ports"][0]
    )
    assert media["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    gateways = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (out,) = policy["egress"]
    assert out["to"][0]["podSelector"]["matchLabels"].items() <= gateways.items()
    assert out["ports"] == media["ports"]
    assert not objects["Service"]["spec"]["selector"].items() <= labels.items()


def test_all_that_was_asked_for_is_there_and_only_that(chart: Chart) -> None:
    few = {"Deployment", "Service", "HeadlessService", "PodDisruptionBudget", "ServiceAccount", "Pod"}
    more = {"Ingress", "HTTPRoute", "BackendTrafficPolicy", "HorizontalPodAutoscaler", "NetworkPolicy"}
    more |= {"PodMonitor", "PrometheusRule", "PersistentVolumeClaim"}

    assert rendered(chart, {}).keys() == few
    assert rendered(chart, EVERYTHING).keys() == few | more


def test_the_gateway_meets_its_triton_and_knows_the_secrets(chart: Chart) -> None:
    values = example("cloud-turn") | {"triton": {"grpcPort": 9001, "metricsPort": 9002}}
    found = containers(rendered(chart, values))
    config = Config.from_env(variables(found["gateway"]))

    assert found["gateway"]["envFrom"] == [{"secretRef": {"name": "wanstream"}}]
    assert "envFrom" not in found["triton"]
    assert config.triton_url == "127.0.0.1:9001"
    assert config.triton_metrics_url == "http://127.0.0.1:9002/metrics"
    assert {"--grpc-port=9001", "--metrics-port=9002"} < set(found["triton"]["args"])
    assert config.triton_shared_memory is True  # they are in one pod
    assert config.relay_only is True


def test_pods_go_to_nodes_with_the_gpu_and_stay_while_they_have_viewers(chart: Chart) -> None:
    objects = rendered(chart, EVERYTHING)
    spec, template = pod(objects), objects["Deployment"]["spec"]["template"]
    readiness = containers(objects)["gateway"]["readinessProbe"]

    assert spec["runtimeClassName"] == "nvidia"
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert template["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert (
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items()
        <= template["metadata"]["labels"].items()
    )
    assert (readiness["periodSeconds"], readiness["failureThreshold"]) == (2, 1)


def test_pods_are_added_when_three_quarters_of_the_places_are_taken(chart: Chart) -> None:
    objects = rendered(chart, {"autoscaling": {"mode": "hpa", "sessionsPerPod": 8, "maxReplicas": 5}})
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]

    assert scaler["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 5)
    assert metric["pods"]["metric"]["name"] == "wanstream_sessions"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "6000m"}
    assert scaler["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 600}]


def test_the_host_s_network_is_used_only_where_it_was_asked_for(chart: Chart) -> None:
    direct, relayed = rendered(chart, example("single-node")), rendered(chart, example("cloud-turn"))

    assert pod(direct)["hostNetwork"] is True
    assert direct["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert "hostNetwork" not in pod(relayed)


def test_rules_and_queries_use_metrics_that_the_gateway_has(chart: Chart) -> None:
    rules = json.dumps(rendered(chart, EVERYTHING)["PrometheusRule"]) + str(
        rendered(chart, example("cloud-turn"))["ScaledObject"]
    )
    documented = (ROOT / "docs" / "operations.md").read_text()
    used = set(re.findall(r"wanstream_\w+", rules))

    assert len(used) >= 4
    assert [metric for metric in used if f"`{metric}" not in documented] == []


# What Prometheus makes of it


def promtool(directory: Path, *arguments: str) -> str:
    """What Prometheus' own checker says; AssertionError when it complains."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is not installed. Run: scripts/setup.sh test")
    done = subprocess.run([program, *arguments], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series(metric: str, values: str, **labels: str) -> dict[str, str]:
    """A series of one pod of this release."""
    labels = {"job": "video/demo-wanstream", "pod": "a", **labels}
    text = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return {"series": f"{metric}{{{text}}}", "values": values}


def alert(name: str, summary: str | None = None, **labels: str) -> dict[str, Any]:
    """What is expected of an alert after five minutes: to fire for pod `a` with this text, or not at all."""
    expected = {
        "exp_labels": {"severity": "critical", "job": "video/demo-wanstream", "pod": "a", **labels},
        "exp_annotations": {"summary": summary},
    }
    return {"eval_time": "5m", "alertname": name, "exp_alerts": [expected] if summary else []}


def test_alerts_fire_for_what_they_name_and_the_query_counts_right(chart: Chart, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump(rendered(chart, EVERYTHING)["PrometheusRule"]["spec"])
    )
    (trigger,) = rendered(chart, example("cloud-turn"))["ScaledObject"]["spec"]["triggers"]
    case = {
        "interval": "1m",
        "input_series": [
            series("wanstream_triton_ready", "1 0 0 0 0 0"),
            series("wanstream_triton_ready", "1 1 1 1 1 1", pod="b"),
            series("wanstream_pipeline_state", "0 1 1 1 1 1", state="error"),
            series("wanstream_sessions", "0 3 3 3 3 3"),
            series("wanstream_sessions", "4 4 4 4 4 4", pod="b"),
            series("wanstream_sessions", "9 9 9 9 9 9", job="video/other"),
            series("wanstream_offers_refused_total", "0 0 0 0 0 0", reason="full"),
            series("wanstream_offers_refused_total", "0 0 0 0 0 24", reason="full", pod="b"),
            series("wanstream_offers_refused_total", "0 60 120 180 240 300", reason="draining", pod="b"),
        ],
        "alert_rule_test": [
            alert(
                "WanstreamTritonDown", "Triton of pod a does not answer; no new viewer can be served there."
            ),
            alert(
                "WanstreamPipelineFailed",
                "The pipeline of pod a could not be loaded; its log says why.",
                state="error",
            ),
            alert("WanstreamFull"),
            alert("WanstreamStreamsEndWithErrors"),
        ],
        "promql_expr_test": [
            {
                "expr": trigger["metadata"]["query"],
                "eval_time": "5m",
                "exp_samples": [{"labels": "{}", "value": 9}],
            }
        ],
    }
    checks = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "checks.yaml").write_text(yaml.safe_dump(checks))

    assert "SUCCESS: 4 rules found" in promtool(tmp_path, "check", "rules", "rules.yaml")
    promtool(tmp_path, "test", "rules", "checks.yaml")
