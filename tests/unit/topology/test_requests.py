"""What pods take of a node, by the scheduler's rules."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import RESOURCE

from pdserve.terms.quantity import QuantityError
from pdserve.topology import pod_requests
from pdserve.topology.requests import amount_text, offered

MI = 2**20


def takes(**requests: Any) -> dict[str, Any]:
    return {"resources": {"requests": requests}}


def limited(**limits: Any) -> dict[str, Any]:
    return {"resources": {"limits": limits}}


def sidecar(container: dict[str, Any]) -> dict[str, Any]:
    return {**container, "restartPolicy": "Always"}


def port(number: Any, **more: Any) -> dict[str, Any]:
    return {"ports": [{"containerPort": 80, "hostPort": number, **more}]}


def key(number: str, address: str = "0.0.0.0") -> dict[str, int]:
    return {f"hostport:{number}": 1, f"hostport:{number}@{address}": 1}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"containers": [takes(cpu="100m"), takes(cpu="1", memory="1Gi")]},
         {"cpu": 1100, "memory": 1024 * MI}),
        ({"containers": [takes(cpu="0.0001", memory="0.5")]}, {"cpu": 1, "memory": 1}),
        ({"containers": [limited(memory="1Mi")]}, {"memory": MI}),
        ({"containers": [{"resources": {"limits": {"cpu": "4"}, "requests": {"cpu": "1"}}}]},
         {"cpu": 1000}),
        ({"containers": [{"resources": {"limits": {"cpu": "4"}, "requests": {"memory": "1"}}}]},
         {"cpu": 4000, "memory": 1}),
        ({"containers": [takes(**{"ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi"})]},
         {"ephemeral-storage": 1024 * MI, "hugepages-2Mi": 4 * MI}),
        ({"containers": [takes(**{RESOURCE: "2", "example.com/nic": 1})]},
         {RESOURCE: 2, "example.com/nic": 1}),
        # The greater of what runs together and of any one init container.
        ({"initContainers": [takes(cpu="3")], "containers": [takes(cpu="1"), takes(cpu="1")]},
         {"cpu": 3000}),
        ({"initContainers": [takes(cpu="1"), takes(memory="2Mi")],
          "containers": [takes(cpu="2", memory="1Mi")]}, {"cpu": 2000, "memory": 2 * MI}),
        # A sidecar runs beside the init containers after it, not those before it.
        ({"initContainers": [sidecar(takes(cpu="1")), takes(cpu="3")],
          "containers": [takes(cpu="2")]}, {"cpu": 4000}),
        ({"initContainers": [takes(cpu="3"), sidecar(takes(cpu="1"))],
          "containers": [takes(cpu="1")]}, {"cpu": 3000}),
        ({"initContainers": [sidecar(takes(cpu="1")), sidecar(takes(cpu="1"))],
          "containers": [takes(cpu="1")]}, {"cpu": 3000}),
        # The runtime's own share comes on top.
        ({"containers": [takes(cpu="1")], "overhead": {"cpu": "250m", "memory": "1Mi"}},
         {"cpu": 1250, "memory": MI}),
        # Amounts of the pod as a whole stand in place of the containers'.
        ({"containers": [takes(cpu="1", memory="1Mi")], "resources": {"requests": {"cpu": "5"}},
          "overhead": {"cpu": "1"}}, {"cpu": 6000, "memory": MI}),
        ({"containers": [takes(cpu="1")], "resources": {"limits": {"cpu": "5", "memory": "5Mi"}}},
         {"cpu": 1000, "memory": 5 * MI}),
        ({"containers": [takes(**{RESOURCE: 1})], "resources": {"requests": {RESOURCE: 5}}},
         {RESOURCE: 1}),
        ({"containers": [takes(cpu="1")],
          "resources": {"limits": {"cpu": "5"}, "requests": {"cpu": "2"}}}, {"cpu": 2000}),
        ({"containers": [takes(**{"hugepages-2Mi": "4Mi"})],
          "resources": {"requests": {"hugepages-2Mi": "8Mi", "memory": "1Mi"}}},
         {"hugepages-2Mi": 8 * MI, "memory": MI}),
        # Host ports, sidecars' too; those of other init containers are never held.
        ({"containers": [port(8080)]}, key("8080:TCP")),
        ({"containers": [port(53, protocol="UDP", hostIP="10.0.0.1")]}, key("53:UDP", "10.0.0.1")),
        ({"containers": [], "initContainers": [sidecar(port(1)), port(2)]}, key("1:TCP")),
        ({"containers": [{"ports": [{"containerPort": 80}]}]}, {}),
        ({"containers": [port(0), port(-1), port("80")]}, {}),
        ({"containers": [{"ports": [{"containerPort": 0}]}], "hostNetwork": True}, {}),
        ({"containers": [port(1, protocol=None, hostIP=None)]}, key("1:TCP")),
        ({"containers": [port(1), port(2)]}, key("1:TCP") | key("2:TCP")),
        ({"containers": [{"ports": [{"containerPort": 80}]}], "hostNetwork": True}, key("80:TCP")),
        ({"containers": [takes(cpu="-1", memory="much", **{RESOURCE: None})]}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_pod_takes_what_the_scheduler_counts(spec: dict[str, Any], want: dict[str, int]) -> None:
    found = pod_requests({"spec": spec})
    assert found == {**want, "pods": 1}
    assert list(found) == sorted(found)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_takes_nothing(phase: str) -> None:
    spec = {"nodeName": "n", "containers": [takes(cpu="1"), port(80)]}
    assert pod_requests({"spec": spec, "status": {"phase": phase}}) == {}


@pytest.mark.parametrize(
    ("resource", "stated", "want", "text"),
    [
        ("cpu", "1500m", 1500, "1500m"), ("cpu", 4, 4000, "4"), ("cpu", "0.0019", 1, "1m"),
        ("memory", "64Gi", 64 * 1024 * MI, "64Gi"), ("memory", "1G", 10**9, "1000000000"),
        ("memory", "1536Mi", 1536 * MI, "1536Mi"), ("pods", "110", 110, "110"),
        ("memory", "5Ei", 5 * 1024**6, "5Ei"), ("memory", "1Pi", 1024**5, "1Pi"),
        ("memory", "3Ti", 3 * 1024**4, "3Ti"), ("memory", "1023", 1023, "1023"),
        ("memory", "1Mi", MI, "1Mi"), ("memory", "1025Mi", 1025 * MI, "1025Mi"),
        ("memory", "-1", 0, "0"), ("example.com/nic", "2Mi", 2 * MI, str(2 * MI)),
    ],
)  # fmt: skip
def test_what_a_node_offers_is_rounded_down_and_written_as_people_do(
    resource: str, stated: Any, want: int, text: str
) -> None:
    assert offered(resource, stated) == want
    assert amount_text(resource, want) == text


@pytest.mark.parametrize("stated", ["much", None, [], True, "9" * 5000])
def test_what_is_no_quantity_is_an_error(stated: Any) -> None:
    with pytest.raises(QuantityError):
        offered("memory", stated)
