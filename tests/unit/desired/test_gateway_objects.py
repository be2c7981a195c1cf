"""The Kubernetes objects of a gateway: rights, arguments, template, disruption, Service."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.desired_objects import OWNER, by_kind, parsed

from pdserve.desired.compare import covers
from pdserve.desired.objects import gateway_objects, url
from pdserve.desired.templates import template_of_service
from pdserve.engines.pod_profile import Rights
from pdserve.engines.template_errors import TemplateError
from pdserve.gateway.process import parse_arguments


def test_a_gateway_may_read_its_route_table_and_nothing_else() -> None:
    made = by_kind()
    assert made["Role"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["shop-routes"],
            "verbs": ["list", "watch"],
        }
    ]
    binding = made["RoleBinding"]
    assert binding["subjects"][0]["name"] == made["ServiceAccount"]["metadata"]["name"]
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == made["ServiceAccount"]["metadata"]["name"]


def test_every_object_of_the_gateway_is_owned_and_selectable() -> None:
    made = by_kind()
    for obj in made.values():
        assert obj["metadata"]["ownerReferences"] == [OWNER]
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "pdserve"
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service"]["spec"]["selector"].items() <= labels.items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_gateways_arguments_are_ones_it_takes() -> None:
    container = by_kind()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    parsed_args = parse_arguments(container["args"])
    assert "default/shop-routes" in container["args"][1]
    assert parsed_args.port == 8000


def test_a_gateway_sees_the_request_credential_and_no_other() -> None:
    template = by_kind()["Deployment"]["spec"]["template"]
    spec = template["spec"]
    assert [v["secret"]["secretName"] for v in spec["volumes"]] == ["shop-request"]
    (container,) = spec["containers"]
    assert {key for e in container["env"] for key in e.get("valueFrom", {})} == {"fieldRef"}
    file = next(e["value"] for e in container["env"] if e["name"] == "PDSERVE_REQUEST_TOKEN_FILE")
    assert file.startswith(container["volumeMounts"][0]["mountPath"] + "/")
    assert template["metadata"]["annotations"]["pdserve.io/credentials"] == "f1"


@pytest.mark.parametrize(("given", "drain"), [(None, 60), (0, 30), (10, 30), (600, 600)])
def test_a_stopped_gateway_has_time_for_its_streams(given: int | None, drain: int) -> None:
    """New connections come in until the Service let go of it; then its streams finish."""
    recovery = {} if given is None else {"recovery": {"drainSeconds": given}}
    pod = by_kind(**recovery)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    serves_on = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert serves_on >= 2
    assert parse_arguments(container["args"]).drain_seconds == drain
    assert pod["terminationGracePeriodSeconds"] >= serves_on + drain + 5


GATEWAY = {
    "replicas": 2,
    "port": 443,
    "auth": {"secretRef": {"name": "keys"}},
    "tls": {"secretRef": {"name": "cert"}},
    "maxBodyBytes": 65536,
    "tracing": {"endpoint": "http://otel.monitoring:4318", "samplingPercent": 25},
    "cors": {"origins": ["https://chat.example.com", "http://localhost:3000"]},
    "resources": {"requests": {"memory": "512Mi"}, "limits": {"cpu": "2"}},
    "template": {
        "metadata": {"labels": {"cost-center": "7"}},
        "spec": {
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "securityContext": {"runAsUser": None, "runAsGroup": None},
        },
    },
}


def test_a_gateway_is_as_its_fields_say() -> None:
    """K7.2: what LimitRanges, label policies, dedicated nodes and OpenShift ask of it."""
    from pdserve.gateway.front import body_bytes
    from pdserve.gateway.trace_settings import read_tracing

    made = by_kind(gateway=GATEWAY)
    template = made["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"]["cost-center"] == "7"
    assert template["spec"]["tolerations"] == [{"key": "dedicated", "operator": "Exists"}]
    assert "runAsUser" not in template["spec"]["securityContext"]
    assert container["resources"] == {"requests": {"memory": "512Mi"}, "limits": {"cpu": "2"}}
    env = {e["name"]: e.get("value", "") for e in container["env"]}
    (name,) = (e for e in container["env"] if e["name"] == "PDSERVE_POD_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert body_bytes(env, 0) == 65536
    tracing = read_tracing(env)
    assert tracing is not None
    assert tracing.url == "http://otel.monitoring:4318/v1/traces"
    assert tracing.resource == {
        "service.name": "shop-gateway", "k8s.namespace.name": "default"
    }  # fmt: skip
    sampled = [tracing.sampler.keeps(bytes(8) + bytes([n]) + bytes(7), None) for n in (63, 64)]
    assert sampled == [True, False]
    assert read_tracing({e["name"]: "" for e in template["spec"]["containers"][0]["env"]}) is None
    assert env["PDSERVE_CORS_ORIGINS"] == "https://chat.example.com,http://localhost:3000"
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert env["PDSERVE_TLS_CERT"] == f"{mounts['tls']}/tls.crt"
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert url(parsed(gateway=GATEWAY)) == "https://shop-gateway.default.svc"
    assert made["Service"]["spec"]["ports"][0]["appProtocol"] == "https"
    assert (
        by_kind()["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
        == env["PDSERVE_METRICS_PORT"]
        == "9090"
    )


def test_a_field_taken_out_of_the_gateway_is_a_change() -> None:
    before, after = by_kind(gateway=GATEWAY), by_kind()
    assert not covers(before["Deployment"], after["Deployment"])
    without = {k: v for k, v in GATEWAY.items() if k != "template"}
    assert not covers(before["Deployment"], by_kind(gateway=without)["Deployment"])


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ({"spec": {"containers": [{"name": "side", "image": "x"}]}}, "template.spec.containers"),
        ({"spec": {"serviceAccountName": "x"}}, "template.spec.serviceAccountName"),
        ({"spec": {"volumes": []}}, "template.spec.volumes"),
        ({"spec": {"hostNetwork": True}}, "template.spec.hostNetwork"),
        ({"spec": {"securityContext": {"runAsUser": 0}}},
         "template.spec.securityContext.runAsUser"),
        ({"spec": {"securityContext": {"$patch": "delete"}}},
         "template.spec.securityContext.$patch"),
        ({"metadata": {"labels": {"app.kubernetes.io/component": "instance"}}},
         "template.metadata.labels[app.kubernetes.io/component]"),
        ({"metadata": {"labels": {"pdserve.io/service": "x"}}},
         "template.metadata.labels[pdserve.io/service]"),
    ],
    ids=str,
)  # fmt: skip
def test_a_gateways_template_says_where_and_as_whom_it_runs_and_no_more(
    template: dict[str, Any], path: str
) -> None:
    service = parsed(gateway={"template": template})
    with pytest.raises(TemplateError) as refused:
        gateway_objects(service, "i", OWNER, "f1")
    assert refused.value.path == path
    found = template_of_service(service, OWNER, Rights())
    assert (found.status, found.message.partition(" ")[0]) == ("False", "gateway:")


def test_gateways_stand_on_different_nodes_where_that_is_possible() -> None:
    template = by_kind()["Deployment"]["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_a_drain_of_nodes_takes_one_gateway_at_a_time() -> None:
    made = by_kind()
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    budget = made["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1, "a gateway that stands alone may go too"


def test_the_service_leads_to_the_gateways_named_port() -> None:
    made = by_kind()
    (port,) = made["Service"]["spec"]["ports"]
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert (port["name"], port["appProtocol"], port["port"]) == ("http", "http", 80)
    assert port["targetPort"] in {p["name"] for p in container["ports"]}
    assert made["Service"]["spec"]["sessionAffinity"] == "None"


def test_api_keys_are_mounted_only_when_wanted() -> None:
    open_pod = by_kind()["Deployment"]["spec"]["template"]["spec"]
    assert "auth" not in {v["name"] for v in open_pod["volumes"]}
    closed = by_kind(gateway={"auth": {"secretRef": {"name": "keys"}}, "port": 8080})
    pod = closed["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "auth", "secret": {"secretName": "keys"}} in pod["volumes"]
    assert "--auth-dir" in pod["containers"][0]["args"]
    assert closed["Service"]["spec"]["ports"][0]["port"] == 8080
    assert url(parsed(gateway={"port": 8080})) == "http://shop-gateway.default.svc:8080"
