"""Instances go where the real scheduler takes them, at the first try."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from tests.support import scenarios as s
from tests.support.installed import (
    RESOURCE,
    Installed,
    fixed,
    make_namespace,
    pdservice,
    role,
    scenario,
)

from pdserve.topology import pod_requests

pytestmark = pytest.mark.cluster

NAMESPACE = "room"
MEMORY = "400Gi"
"""More than the machine has: process nodes hold no container to what it requests."""


@pytest.fixture(scope="module")
def site(installed: Installed) -> Iterator[s.Cluster]:
    """The cluster, with a namespace of its own."""
    make_namespace(installed.cluster, NAMESPACE)
    yield installed.cluster
    installed.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@contextmanager
def patched(
    site: s.Cluster, node: str, body: s.Json, before: s.Json, *options: str
) -> Iterator[None]:
    """The Node with `body` merged, and `before` afterwards."""

    def patch(merged: s.Json) -> None:
        site.kubectl("patch", "node", node, "--type=merge", *options, "-p", json.dumps(merged))

    patch(body)
    try:
        yield
    finally:
        patch(before)


def roomy(site: s.Cluster, node: str) -> AbstractContextManager[None]:
    """A node with memory for two instances and a little more."""
    found = site.get(f"/api/v1/nodes/{node}")
    assert found is not None
    before = {k: {"memory": found["status"][k]["memory"]} for k in ("allocatable", "capacity")}
    more = {k: {"memory": "900Gi"} for k in before}
    return patched(site, node, {"status": more}, {"status": before}, "--subresource=status")


def bystander(node: str) -> s.Json:
    """A foreign pod without devices that takes the node's memory; it need not run for that."""
    requests = {"requests": {"memory": "600Gi"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bystander", "namespace": "default"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "x", "image": "no.such/image:1", "resources": requests}],
        },
    }


def free_nodes(site: s.Cluster) -> list[str]:
    """Nodes whose devices no pod holds, by name."""
    nodes = json.loads(site.kubectl("get", "nodes", "-o", "json"))["items"]
    pods = json.loads(site.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    held = {p["spec"].get("nodeName") for p in pods if RESOURCE in pod_requests(p)}
    return sorted(s.name_of(n) for n in nodes if s.name_of(n) not in held)


def wanting(name: str, template: s.Json) -> s.Json:
    """A PDService of 1P1D with this pod spec as the template of both roles."""
    roles = {r: {**role(slots=4), "template": {"spec": template}} for r in ("prefill", "decode")}
    return pdservice(NAMESPACE, name, scenario("chat", fixed(1, 1, 1)), **roles)


def served_at_the_first_try(site: s.Cluster, name: str, node: str) -> None:
    """The service is Ready on this node alone, and no pod was ever refused or made again."""
    s.wait_service(site, NAMESPACE, name)
    instances = s.pods(site, NAMESPACE, service=name)
    assert [p["spec"]["nodeName"] for p in instances] == [node, node]
    refused = s.events(site, NAMESPACE, "FailedScheduling")
    assert not [e for e in refused if e["regarding"]["name"].startswith(name)], refused
    group = s.group(site, NAMESPACE, f"{name}-chat")
    assert group is not None and not group["status"].get("repairs")


def test_the_one_node_with_the_memory_is_found(site: s.Cluster) -> None:
    """Of two nodes that have it, a pod without devices takes the memory of the one."""
    taken, home = free_nodes(site)[-2:]
    with roomy(site, home), roomy(site, taken):
        site.apply(bystander(taken))
        requests = {"resources": {"requests": {"memory": MEMORY}}}
        template = {"containers": [{"name": "engine", **requests}]}
        site.apply(wanting("memory", template), namespace=NAMESPACE)
        served_at_the_first_try(site, "memory", home)
        site.kubectl("delete", "pds", "memory", "-n", NAMESPACE)
        site.kubectl("delete", "pod", "bystander", "--wait=false")


def test_nothing_is_made_before_a_node_has_the_demanded_label(site: s.Cluster) -> None:
    home = free_nodes(site)[-1]
    site.apply(wanting("label", {"nodeSelector": {"disk": "ssd"}}), namespace=NAMESPACE)

    def told() -> s.Json | None:
        placed = s.condition(s.group(site, NAMESPACE, "label-chat"), "Placed")
        return placed if placed.get("reason") == "NoFit" else None

    message = s.until("no node has the label", told)["message"]
    assert "(the template wants disk=ssd)" in message
    assert s.pods(site, NAMESPACE, service="label") == []
    label, none = ({"metadata": {"labels": {"disk": value}}} for value in ("ssd", None))
    with patched(site, home, label, none):
        served_at_the_first_try(site, "label", home)
    site.kubectl("delete", "pds", "label", "-n", NAMESPACE)
