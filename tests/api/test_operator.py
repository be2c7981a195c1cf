"""The operator against a real kube-apiserver: what the in-memory model cannot know.

Server defaults (an idle reconcile must still write nothing), CRD pruning, admission of the pods
and of the RBAC objects. There is no kubelet: this test binds and runs the pods by patching them.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.operator_on_api import (
    Recording,
    cluster_objects,
    namespace_objects,
    operating,
    until,
)
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS
from pdserve.dst.world_service import service
from pdserve.kube.resource import NODES

pytestmark = [pytest.mark.api, pytest.mark.timeout(240)]
NS = "operator"
DOMAIN = "operator-test"


@pytest.fixture(scope="module")
def prepared(rest: Rest) -> Rest:
    namespace_objects(rest, NS)
    cluster_objects(rest, DOMAIN, "op")
    return rest


async def settled(recording: Recording) -> None:
    """Nothing was written in further ratio ticks and the domain's gathering delay.

    40 looks of 0.1 s, not the clock: a process that stood still for 4 s was not quiet.
    """
    deadline = time.monotonic() + 60
    looks, wrote = 0, -1
    while looks < 40:
        quiet = len(recording.writes) == wrote and not recording.unanswered
        looks, wrote = (looks + 1 if quiet else 0), len(recording.writes)
        assert time.monotonic() < deadline, recording.writes[-5:]
        await asyncio.sleep(0.1)


async def test_apply_to_ready_then_silence(control_plane: ControlPlane, prepared: Rest) -> None:
    wanted = service(scenarios=("chat", "search"), devices=2)
    wanted["metadata"]["namespace"] = NS
    wanted["spec"]["fabric"]["domainRef"]["name"] = DOMAIN
    wanted["spec"]["gateway"] = {"auth": {"secretRef": {"name": "keys"}}}
    async with operating(control_plane, prepared, [NS], watched=NS) as run:
        client, recording = run.client, run.recording
        await client.create(PDSERVICES, wanted)

        async def linked() -> bool:
            live = await client.get(PDSERVICES, "shop", NS)
            conditions = {c["type"]: c for c in live.get("status", {}).get("conditions", ())}
            # No Deployment controller here: all but the gateway's pods gets ready.
            return bool(conditions.get("Ready", {}).get("reason") == "GatewayNotReady")

        await until(linked, "every scenario ready")
        await settled(recording)
        summary = (await client.get(PDSERVICES, "shop", NS))["status"]["summary"]
        assert summary["prefill"] == summary["decode"] == "2/2"
        domain = await client.get(ROCE_DOMAINS, DOMAIN)
        assert domain["status"]["nodes"]["ready"] == 2
        recording.requests.clear()
        node = await client.get(NODES, "op-a")
        node["metadata"]["labels"]["wake"] = "all"
        await client.update(NODES, node)  # every object is looked at again
        service_now = await client.get(PDSERVICES, "shop", NS)
        service_now["metadata"]["annotations"] = {"wake": "up"}
        await client.update(PDSERVICES, service_now)
        await asyncio.sleep(2)
        assert recording.writes == []
