"""Every value of the chart: where it ends up, what is refused, and that docs/install.md has it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from tests.support.chart import CHART, Json, leaves, nested, only, render, template

ROOT = CHART.parents[1]
VALUES: Json = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Json = json.loads((CHART / "values.schema.json").read_text())
KUBERNETES = frozenset({"operator.resources", "operator.affinity"})
"""Values that are whole parts of a pod."""
LEAVES = leaves(VALUES, KUBERNETES)
EXAMPLE = "examples/local/prometheus.yaml"

Find = Callable[[list[Json]], Any]


# --- where a value ends up ---------------------------------------------------------------------


def pod(documents: list[Json]) -> Json:
    return dict(only(documents, "Deployment")["spec"]["template"]["spec"])


def pod_meta(documents: list[Json]) -> Json:
    return dict(only(documents, "Deployment")["spec"]["template"]["metadata"])


def container(documents: list[Json]) -> Json:
    return dict(pod(documents)["containers"][0])


def argument(flag: str) -> Find:
    def find(documents: list[Json]) -> Any:
        given = [a.partition("=")[2] for a in container(documents)["args"] if a.startswith(flag)]
        return given[0] if given else None

    return find


def kinds(*wanted: str) -> Find:
    return lambda documents: sorted({d["kind"] for d in documents} & set(wanted))


def monitor(documents: list[Json]) -> Json:
    return only(documents, "PodMonitor")


TOLERATION = {"key": "infra", "operator": "Exists", "effect": "NoSchedule"}
DIGEST = "pdserve/operator@sha256:" + "0" * 64
NODES = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "infra", "operator": "Exists"}]}]
        }
    }
}
OWN = {
    "matchLabels": {
        "app.kubernetes.io/name": "pdserve",
        "app.kubernetes.io/instance": "pdserve",
        "app.kubernetes.io/component": "operator",
    }
}
ZONES = {"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1,
         "whenUnsatisfiable": "DoNotSchedule"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`path: value` makes `find(documents)` be `then`; by default it is `before`."""

    path: str
    value: Any
    find: Find
    then: Any
    before: Any
    given: Json | None = None
    """Further values."""


CASES = [
    Case("images.registry", "r.example:5000/ai", lambda d: container(d)["image"],
         "r.example:5000/ai/pdserve/operator:0.1.0", "pdserve/operator:0.1.0"),
    Case("images.operator", DIGEST, lambda d: container(d)["image"], DIGEST,
         "pdserve/operator:0.1.0"),
    Case("images.gateway", "mine/gateway", argument("--gateway-image"), "mine/gateway:0.1.0",
         "pdserve/gateway:0.1.0"),
    Case("images.tag", "v9", argument("--gateway-image"), "pdserve/gateway:v9",
         "pdserve/gateway:0.1.0"),
    Case("images.pullPolicy", "Always", lambda d: container(d)["imagePullPolicy"], "Always",
         "IfNotPresent"),
    Case("images.pullSecrets", [{"name": "reg"}], lambda d: pod(d).get("imagePullSecrets"),
         [{"name": "reg"}], None),
    Case("crds.install", False, kinds("CustomResourceDefinition"), [],
         ["CustomResourceDefinition"]),
    Case("operator.replicas", 3, lambda d: only(d, "Deployment")["spec"]["replicas"], 3, 2),
    Case("operator.watchNamespace", "team-a", argument("--namespace"), "team-a", None),
    Case("operator.logFormat", "text", argument("--log-format"), "text", "json"),
    Case("operator.logLevel", "debug", argument("--log-level"), "debug", "info"),
    Case("operator.extraArgs", ["--workers=8"], argument("--workers"), "8", None),
    Case("operator.resources", {"limits": {"memory": "2Gi", "cpu": 2}},
         lambda d: container(d)["resources"],
         {"limits": {"memory": "2Gi", "cpu": 2}, "requests": {"cpu": "100m", "memory": "256Mi"}},
         {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}}),
    Case("operator.priorityClassName", "system-cluster-critical",
         lambda d: pod(d).get("priorityClassName"), "system-cluster-critical", None),
    Case("operator.nodeSelector", {"infra": "yes"}, lambda d: pod(d).get("nodeSelector"),
         {"infra": "yes"}, None),
    Case("operator.tolerations", [TOLERATION], lambda d: pod(d).get("tolerations"), [TOLERATION],
         None),
    Case("operator.affinity", NODES, lambda d: pod(d).get("affinity"), NODES, None),
    Case("operator.topologySpreadConstraints", [ZONES, {**ZONES, "labelSelector": {}}],
         lambda d: pod(d).get("topologySpreadConstraints"),
         [{**ZONES, "labelSelector": OWN}, {**ZONES, "labelSelector": {}}],
         [{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1,
           "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": OWN}]),
    Case("operator.podDisruptionBudget.enabled", False, kinds("PodDisruptionBudget"), [],
         ["PodDisruptionBudget"]),
    Case("operator.podAnnotations", {"prometheus.io/scrape": "false", "a": "b"},
         lambda d: pod_meta(d)["annotations"],
         {"prometheus.io/scrape": "false", "prometheus.io/port": "9090", "a": "b"},
         {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}),
    Case("operator.podLabels", {"team": "ai", "app.kubernetes.io/name": "other"},
         lambda d: pod_meta(d)["labels"], {**OWN["matchLabels"], "team": "ai"},
         OWN["matchLabels"]),
    Case("prometheus.auth.secretName", "prom", argument("--prometheus-token-file"),
         "/etc/pdserve/prometheus-auth/t", None, {"prometheus": {"auth": {"tokenKey": "t"}}}),
    Case("prometheus.auth.tokenKey", "t", argument("--prometheus-token-file"),
         "/etc/pdserve/prometheus-auth/t", None, {"prometheus": {"auth": {"secretName": "s"}}}),
    Case("prometheus.auth.usernameKey", "u", argument("--prometheus-username-file"),
         "/etc/pdserve/prometheus-auth/u", "/etc/pdserve/prometheus-auth/username",
         {"prometheus": {"auth": {"secretName": "s"}}}),
    Case("prometheus.auth.passwordKey", "p", argument("--prometheus-password-file"),
         "/etc/pdserve/prometheus-auth/p", "/etc/pdserve/prometheus-auth/password",
         {"prometheus": {"auth": {"secretName": "s"}}}),
    Case("prometheus.ca.secretName", "ca", argument("--prometheus-ca-file"),
         "/etc/pdserve/prometheus-ca/ca.crt", None),
    Case("prometheus.ca.key", "b.pem", argument("--prometheus-ca-file"),
         "/etc/pdserve/prometheus-ca/b.pem", "/etc/pdserve/prometheus-ca/ca.crt",
         {"prometheus": {"ca": {"secretName": "ca"}}}),
    Case("prometheus.url", "https://prometheus.example/x", argument("--prometheus-url"),
         "https://prometheus.example/x", None),
    Case("ratio.controlPeriodSeconds", 30.5, argument("--control-period"), "30.5", "60"),
    Case("ratio.fastPeriodSeconds", 15, argument("--fast-period"), "15", "5"),
    Case("ratio.metricsWindowSeconds", 120, argument("--metrics-window"), "120", "60"),
    Case("podMonitor.enabled", True, kinds("PodMonitor"), ["PodMonitor"], []),
    Case("podMonitor.labels", {"release": "prometheus"},
         lambda d: monitor(d)["metadata"]["labels"].get("release"), "prometheus", None,
         {"podMonitor": {"enabled": True}}),
    Case("podMonitor.interval", "5s",
         lambda d: {e["interval"] for e in monitor(d)["spec"]["podMetricsEndpoints"]}, {"5s"},
         {"15s"}, {"podMonitor": {"enabled": True}}),
    Case("security.admissionPolicy", False,
         lambda d: ("--authors-checked" in container(d)["args"],
                    *kinds("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")(d)),
         (False,),
         (True, "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")),
    Case("modelCache.hostPath", "/var/lib/pdserve/models", argument("--model-cache="),
         "/var/lib/pdserve/models", None),
    Case("modelCache.namespaces", ["a", "b"], argument("--model-cache-namespaces"), "a,b", None),
    Case("security.allowedPodFields", ["spec.hostPID", "a:spec.volumes[*].hostPath=/dev/x"],
         argument("--allowed-pod-fields"), "spec.hostPID,a:spec.volumes[*].hostPath=/dev/x", None),
    Case("serviceAccount.create", False, kinds("ServiceAccount"), [], ["ServiceAccount"],
         {"serviceAccount": {"name": "mine"}}),
    Case("serviceAccount.name", "mine", lambda d: pod(d)["serviceAccountName"], "mine",
         "pdserve-operator"),
    Case("serviceAccount.annotations", {"a": "b"},
         lambda d: only(d, "ServiceAccount")["metadata"].get("annotations"), {"a": "b"}, None),
    Case("rbac.create", False, kinds("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
         [], ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    Case("rbac.aggregate", False,
         lambda d: sorted(x["metadata"]["name"].rpartition("-")[2] for x in d
                          if "aggregate-to" in str(x["metadata"]["labels"])),
         [], ["admin", "edit", "view"]),
    Case("operator.runAsUser", 1000,
         lambda d: (pod(d)["securityContext"].get("runAsUser"),
                    pod(d)["securityContext"].get("runAsGroup")), (1000, 1000), (65532, 65532)),
]  # fmt: skip


def merged(one: Json, other: Json) -> Json:
    both = dict(one)
    for key, value in other.items():
        both[key] = merged(both[key], value) if isinstance(both.get(key), dict) else value
    return both


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_value_has_its_effect(case: Case) -> None:
    given = case.given or {}
    assert case.find(render(given)) == case.before
    assert case.find(render(merged(given, nested(case.path, case.value)))) == case.then


def test_the_operators_user_is_left_to_the_platform_where_asked() -> None:
    context = pod(render(operator={"runAsUser": None}))["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_every_value_has_a_case() -> None:
    assert sorted(case.path for case in CASES) == sorted(LEAVES)


def test_one_pod_monitor_labels_series_as_the_example_job_does() -> None:
    """What the ratio loop reads; `namespace` and `pod` the Prometheus Operator adds itself."""
    spec = monitor(render(podMonitor={"enabled": True}))["spec"]
    documents = list(yaml.safe_load_all((ROOT / EXAMPLE).read_text()))
    text = only(documents, "ConfigMap")["data"]["prometheus.yml"]
    (job,) = yaml.safe_load(text)["scrape_configs"]
    wanted = [
        {"sourceLabels": r["source_labels"], "regex": r["regex"], "targetLabel": r["target_label"]}
        for r in job["relabel_configs"]
        if "target_label" in r and r["target_label"] not in ("namespace", "pod", "__address__")
    ]
    assert len(wanted) == 6
    for endpoint in spec["podMetricsEndpoints"]:
        one_port, *labels = endpoint["relabelings"]
        assert labels == wanted
        assert one_port == {
            "action": "keepequal",
            "sourceLabels": ["__meta_kubernetes_pod_container_port_number"],
            "targetLabel": "__meta_kubernetes_pod_annotation_prometheus_io_port",
        }
        assert endpoint["honorLabels"] is job["honor_labels"] is False
    assert {e["port"] for e in spec["podMetricsEndpoints"]} == {"http", "metrics"}
    assert spec["namespaceSelector"] == {"any": True}
    (name,) = spec["selector"]["matchLabels"].items()
    assert name in pod_meta(render())["labels"].items()


# --- what is refused ---------------------------------------------------------------------------

REFUSED: list[tuple[str, Any, str]] = [
    ("operater", {"replicas": 1}, "operater"),
    ("operator.replica", 1, "replica"),
    ("operator.replicas", 0, "minimum: got 0, want 1"),
    ("operator.replicas", 9, "maximum: got 9, want 5"),
    ("operator.watchNamespace", "Team_A", "/operator/watchNamespace"),
    ("operator.logFormat", "xml", "must be one of 'json', 'text'"),
    ("operator.logLevel", "loud", "must be one of 'debug', 'info', 'warning', 'error'"),
    ("operator.extraArgs", ["--log-level", "debug"], "/operator/extraArgs/1"),
    ("operator.extraArgs", ["--namespace=a"], "set operator.watchNamespace instead"),
    ("operator.extraArgs", ["--no-leader-election"], "--no-leader-election is the chart's to set"),
    ("operator.extraArgs", ["--no-such-flag=1"], "--no-such-flag is no flag of the operator"),
    ("modelCache.hostPath", "/", "/modelCache/hostPath"),
    ("modelCache.hostPath", "/var/../etc", "/modelCache/hostPath"),
    ("modelCache.namespaces", ["a,b"], "/modelCache/namespaces/0"),
    ("security.allowedPodFields", ["hostPID"], "/security/allowedPodFields/0"),
    ("security.allowedPodFields", ["spec.hostPID,spec.hostIPC"], "/security/allowedPodFields/0"),
    ("operator.runAsUser", 0, "minimum: got 0, want 1"),
    ("operator.resources", {"limit": {"memory": "1Gi"}}, "'limit' not allowed"),
    ("operator.resources", {"limits": {"memory": "1 GB"}}, "/operator/resources/limits/memory"),
    ("operator.affinity", {"nodeSelectorTerms": []}, "'nodeSelectorTerms' not allowed"),
    ("operator.tolerations", [{"effect": "Never"}], "/operator/tolerations/0/effect"),
    ("operator.topologySpreadConstraints", [{"maxSkew": 1}], "topologyKey"),
    ("operator.podAnnotations", {"a": True}, "got boolean, want string"),
    ("operator.priorityClassName", "High Priority", "/operator/priorityClassName"),
    ("images.registry", "https://r.example", "/images/registry"),
    ("images.operator", "pdserve/operator@sha256:12", "/images/operator"),
    ("images.tag", 0.1, "got number, want string"),
    ("images.tag", "a b", "/images/tag"),
    ("images.pullPolicy", "Sometimes", "must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("images.pullSecrets", ["reg"], "got string, want object"),
    ("prometheus.url", "prometheus:9090", "/prometheus/url"),
    ("ratio.controlPeriodSeconds", 0, "/ratio/controlPeriodSeconds"),
    ("ratio.controlPeriodSeconds", 4, "ratio.fastPeriodSeconds (5) must not be longer"),
    ("ratio.metricsWindowSeconds", "1m", "got string, want number"),
    ("podMonitor.interval", "often", "/podMonitor/interval"),
    ("podMonitor.interval", 15, "got number, want string"),
    ("serviceAccount.create", False, "serviceAccount.name: name the existing account"),
    ("serviceAccount.name", "My Account", "/serviceAccount/name"),
    ("crds.install", "yes", "got string, want boolean"),
]


@pytest.mark.parametrize(
    ("path", "value", "says"), REFUSED, ids=[f"{path}={value}" for path, value, _ in REFUSED]
)
def test_wrong_values_are_refused_by_name(path: str, value: Any, says: str) -> None:
    done = template(nested(path, value))
    assert done.returncode != 0
    assert says in done.stderr


def test_values_of_another_type_are_refused_all_at_once() -> None:
    values: Json = {}
    for path, default in LEAVES.items():
        wrong = {bool: "yes", int: "one", str: 7, list: "none", dict: "none"}[type(default)]
        values = merged(values, nested(path, wrong))
    done = template(values)
    assert done.returncode != 0
    named = {n.replace("/", ".") for n in re.findall(r"at '/([\w/]+)'", done.stderr)}
    assert LEAVES.keys() - named == set()


def objects(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every part of the schema that names its properties."""
    if "properties" in schema:
        yield path, schema
    for key, part in schema.get("properties", {}).items():
        yield from objects(part, f"{path}.{key}".strip("."))
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")


def test_the_schema_is_closed_everywhere() -> None:
    for path, part in objects(SCHEMA):
        assert part["additionalProperties"] is False, path or "top"


def test_the_schema_knows_the_values_and_no_others_and_describes_each() -> None:
    known = {}
    for path, part in objects(SCHEMA):
        if path.split("[")[0] in KUBERNETES or "[" in path:
            continue
        for key, schema in part["properties"].items():
            known[f"{path}.{key}".strip(".")] = schema
    groups = {path.rpartition(".")[0] for path in LEAVES}
    groups |= {path.partition(".")[0] for path in groups}
    assert known.keys() - groups - {"global"} == LEAVES.keys()
    assert [path for path, schema in known.items() if not schema.get("description")] == []


# --- the page ----------------------------------------------------------------------------------


def test_the_page_has_every_value_with_its_default() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", text, re.MULTILINE))
    assert sorted(rows) == sorted(LEAVES)
    assert {path: yaml.safe_load(default) for path, default in rows.items()} == LEAVES
