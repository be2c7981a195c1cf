"""KV leaves the pods' network once the pods have addresses on the devices' network."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.support import scenarios as s
from tests.support.installed import Installed, fetch, fixed, make_namespace, pdservice, scenario
from tests.support.traffic import MODEL, client

from pdserve.wire import metrics, names

pytestmark = pytest.mark.cluster

NAMESPACE = "rails"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
BY_DEVICE = f'{metrics.KV_PULLS}{{path="device",reason=""}}'


@pytest.fixture(scope="module")
def site(installed: Installed) -> Iterator[s.Cluster]:
    """The cluster, with 1x(1P1D) in a namespace of its own."""
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    cluster.apply(
        pdservice(NAMESPACE, NAMESPACE, scenario("chat", fixed(1, 1, 1))), namespace=NAMESPACE
    )
    s.wait_service(cluster, NAMESPACE, NAMESPACE)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_running_instances_take_to_the_devices_network(site: s.Cluster) -> None:
    """As Multus does: it tells a pod's addresses in an annotation. Here they are on loopback."""
    pods = {role: s.pods(site, NAMESPACE, role=role)[0] for role in ("prefill", "decode")}
    (gateway,) = s.wait_gateways(site, NAMESPACE, NAMESPACE, 1)
    url = site.url(gateway)
    before = s.identities(site, NAMESPACE)
    generate(url)
    decode = site.url(pods["decode"])
    assert BY_DEVICE not in fetch(f"{decode}/metrics"), "nothing was reported about devices"

    told = {}
    for last, (role, pod) in enumerate(pods.items(), start=6):
        # Of the node's devices: pods have addresses from .32 on.
        told[role] = f"{str(pod['status']['podIP']).rpartition('.')[0]}.{2 + last}"
        networks = [{"name": "fabric/rail-0", "interface": "net1", "ips": [told[role]]}]
        value = f"{names.ANNOTATION_NETWORK_STATUS}={json.dumps(networks)}"
        site.kubectl("annotate", "pod", s.name_of(pod), "-n", NAMESPACE, value)

    def by_device() -> bool:
        generate(url)
        return BY_DEVICE in fetch(f"{decode}/metrics")

    def listening() -> bool:
        infos = {r: json.loads(fetch(f"{site.url(p)}/pdserve/v1/info")) for r, p in pods.items()}
        wanted = {role: {"listening": [ip], "missing": {}} for role, ip in told.items()}
        return {role: info["kvDevices"] for role, info in infos.items()} == wanted

    s.until("KV from a device's address", by_device)
    s.until("each listens at its device's address", listening)
    peers = s.table(site, NAMESPACE, names.peers_configmap_name(GROUP, 0), names.KEY_PEERS)
    found = {
        p["role"]: [d["ip"] for n in p["nodes"] for d in n["devices"]] for p in peers["instances"]
    }
    assert found == {role: [ip] for role, ip in told.items()}
    assert s.identities(site, NAMESPACE) == before, "no instance was touched for it"


def generate(url: str) -> None:
    """One whole answer."""
    answer = client(url).completions.create(model=MODEL, prompt="Once upon a time", max_tokens=4)
    assert answer.choices[0].text
