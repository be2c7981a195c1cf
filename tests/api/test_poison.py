"""Nothing that a tenant, node, engine or series says stops the operator: the real API server.

What it lets in is stored before the operator starts (its first lists meet all of it) and again
while it runs. What it would not let in, `tests/unit/controllers/test_poison.py` tries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from tests.support.operator_on_api import (
    Operating,
    cluster_objects,
    namespace_objects,
    node,
    operating,
    until,
)
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS
from pdserve.controllers.shared.instance_calls import EngineApi, Target
from pdserve.dst.world_service import service
from pdserve.engines import registry
from pdserve.kube.resource import CONFIGMAPS, EVENTS, NODES, PODS, Object
from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.telemetry.assemble import Answers, assemble
from pdserve.telemetry.promql import SeriesKey, queries
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import names
from pdserve.wire.bounds import parse_json
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

pytestmark = [pytest.mark.api, pytest.mark.timeout(280)]
NS, TENANT = "honest", "tenant"
DOMAIN, THEIRS = "poison-test", "poison-tenant"
AMOUNTS = ("1e3", "1T", "1Ti", "8Ei", "9e18")
ANNOTATIONS = ('[{"id": 1e999}]', "[" * 100_000)
ROGUE = (
    b'{"version":1e999,"up":[],"down":{}}',
    b"[" * 200_000,
    b'{"version": 1, "up": ["\xff"], "down": {}}',
    b'{"version": 1, "up": [{}], "down": 5}',
)


class RogueEngines:
    """Instances of the tenant answer nonsense, each time another kind of it."""

    def __init__(self, inner: EngineApi) -> None:
        self.inner = inner
        self.told = 0

    def _answer(self, target: Target) -> Any:
        if not target.service.startswith(TENANT):
            return None
        self.told += 1
        return parse_json(ROGUE[self.told % len(ROGUE)])

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        if not target.service.startswith(TENANT):
            await self.inner.put_peers(target, table)

    async def get_links(self, target: Target) -> LinkReport:
        answer = self._answer(target)
        return (
            await self.inner.get_links(target) if answer is None else LinkReport.from_json(answer)
        )

    async def post_drain(self, target: Target) -> DrainReport:
        answer = self._answer(target)
        return (
            await self.inner.post_drain(target) if answer is None else DrainReport.from_json(answer)
        )


class HugeSeries:
    """Every series of every pod is 1e308."""

    def __init__(self) -> None:
        self.asked = 0

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        self.asked += 1
        windows = (60.0, 180.0, 600.0)
        found: dict[ScenarioKey, ScenarioSample | Unknown] = {}
        for key, pods in live.items():
            pod_names = sorted(pods.gateways | pods.prefill | pods.decode)
            row = {SeriesKey(*key, pod): 1e308 for pod in pod_names}
            ages = {SeriesKey(*key, pod): 1.0 for pod in pod_names}
            rows = {
                q.name: ages if q.name.endswith("_age") else row
                for q in queries(windows, {}, registry.series())
            }
            found[key] = assemble(key, pods, Answers(time.time(), 1.0, windows, 60.0, rows))
        return found

    async def close(self) -> None:
        pass


def poison_pod(name: str, amount: str) -> Object:
    """A pod that any user may create; it is labelled as if the operator had made it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": TENANT,
            "labels": {
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
                names.LABEL_ROLE: "emperor",
                names.LABEL_GROUP_INDEX: "9" * 63,
            },
            "annotations": {names.ANNOTATION_DRAIN: "9999-12-31T23:59:59-23:59"},
        },
        "spec": {
            "nodeName": "poison-b",
            "containers": [
                {
                    "name": "c",
                    "image": "x",
                    "resources": {"limits": {"example.com/x": amount}},
                }
            ],
        },
    }


def pdservice(name: str, namespace: str, domain: str, devices: int = 2) -> Object:
    wanted = service(name, devices=devices)
    wanted["metadata"]["namespace"] = namespace
    wanted["spec"]["fabric"]["domainRef"]["name"] = domain
    return wanted


@pytest.fixture(scope="module")
def prepared(rest: Rest) -> Rest:
    namespace_objects(rest, NS)
    namespace_objects(rest, TENANT)
    cluster_objects(rest, DOMAIN, "poison")
    cluster_objects(rest, THEIRS, "tenant", "a")
    for n, text in enumerate(ANNOTATIONS):
        name = f"poison-node-{n}"
        node(rest, name, {DOMAIN: "yes", "fabric/leaf": "a"}, devices="0")
        annotations = {
            names.ANNOTATION_ROCE_DEVICES: text,
            names.ANNOTATION_UNHEALTHY_DEVICES: text,
        }
        answer = rest.patch(
            f"/api/v1/nodes/{name}", {"metadata": {"annotations": annotations}}, "merge"
        )
        assert answer.code == 200, answer.body
    for n, amount in enumerate(AMOUNTS):
        pod = poison_pod(f"before-{n}", amount)
        answer = rest.create(f"/api/v1/namespaces/{TENANT}/pods", pod)
        assert answer.code == 201, answer.body
    return rest


async def routed(run: Operating, name: str = "shop", namespace: str = NS) -> set[str]:
    found = (await run.client.list(CONFIGMAPS, namespace)).items
    table = next((c for c in found if c["metadata"]["name"] == f"{name}-routes"), None)
    if table is None:
        return set()
    try:
        value = json.loads(table["data"][names.KEY_ROUTES])
        return {i["id"] for s in value["scenarios"] for g in s["groups"] for i in g["instances"]}
    except (ValueError, TypeError, RecursionError):
        return set()


async def condition(run: Operating, resource: Any, name: str, namespace: str, kind: str) -> Object:
    live = await run.client.get(resource, name, namespace)
    found = live.get("status", {}).get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


async def repair(run: Operating) -> float:
    """Delete an honest instance; seconds until another is routed in its place."""
    # A forged table may just have been seen, and not been replaced yet.
    before: set[str] = await until(lambda: routed(run), "instances are routed")
    victim = sorted(before)[0]
    started = time.monotonic()
    await run.client.delete(PODS, victim, namespace=NS)

    async def replaced() -> bool:
        now = await routed(run)
        return victim not in now and len(now) == len(before)

    await until(replaced, f"{victim} is replaced")
    return time.monotonic() - started


async def forge(run: Operating, name: str, namespace: str, key: str, text: str) -> None:
    operation = {"op": "replace", "path": f"/data/{key.replace('/', '~1')}", "value": text}
    await run.client.patch_json(CONFIGMAPS, name, [operation], namespace=namespace)


async def test_poison_stops_no_other(control_plane: ControlPlane, prepared: Rest) -> None:
    source, rogues = HugeSeries(), []

    def engines_of(engines: EngineApi) -> EngineApi:
        rogues.append(RogueEngines(engines))
        return rogues[-1]

    async with operating(
        control_plane, prepared, [NS, TENANT], engines_of=engines_of, source=source
    ) as run:
        await run.client.create(PDSERVICES, pdservice("shop", NS, DOMAIN))
        await run.client.create(PDSERVICES, pdservice("bad", TENANT, THEIRS))
        shaped = pdservice("shaped", TENANT, THEIRS)
        shaped["spec"]["prefill"]["template"] = {"metadata": {"labels": 5}}
        await run.client.create(PDSERVICES, shaped)
        await until(lambda: routed(run), "the honest service is routed")
        took = [await repair(run)]

        async def refused() -> bool:
            found = await condition(run, PDSERVICES, "shaped", TENANT, "TemplateValid")
            return found.get("status") == "False"

        await until(refused, "template.metadata.labels: 5 is reported")
        # The same again, as news.
        for n, amount in enumerate(AMOUNTS):
            await run.client.create(PODS, poison_pod(f"after-{n}", amount))
        for n, text in enumerate(reversed(ANNOTATIONS)):
            notes = {names.ANNOTATION_ROCE_DEVICES: text}
            path = f"/api/v1/nodes/poison-node-{n}"
            prepared.patch(path, {"metadata": {"annotations": notes}}, "merge")
        took.append(await repair(run))
        await forge(run, "shop-routes", NS, names.KEY_ROUTES, '{"version":' + "[" * 50_000)
        await until(lambda: routed(run), "the forged route table is replaced")
        peers = names.peers_configmap_name(names.scenario_group_name("shop", "chat"), 0)
        await forge(run, peers, NS, names.KEY_PEERS, '{"schemaVersion": 1, "version": Infinity}')
        took.append(await repair(run))

        async def answered() -> bool:
            return bool(rogues[0].told >= 2 * len(ROGUE) and source.asked >= 3)

        await until(answered, "rogue answers were read")
        took.append(await repair(run))

        async def told() -> bool:
            events = (await run.client.list(EVENTS, TENANT)).items
            return any(e["reason"] == "ObjectSkipped" for e in events)

        await until(told, "an Event about an instance that answers nonsense")
        link = run.registry.value("pdserve_operator_skipped_objects_total", "Pod", "link")
        assert link is not None and link >= len(ROGUE)
        ready = await condition(run, ROCE_DOMAINS, DOMAIN, "", "Ready")
        assert ready["status"] == "True" and "poison-node-0" in ready["message"]
        assert (await routed(run)).isdisjoint({f"before-{n}" for n in range(len(AMOUNTS))})
        assert await routed(run, "bad", TENANT) == set()
        assert (await run.client.get(NODES, "poison-node-0"))["metadata"]["name"]
        assert not run.task.done(), "the operator ended"
        print(f"honest repairs: {', '.join(f'{t:.1f} s' for t in took)}")


@pytest.mark.parametrize("levels", [100, 900, 3000])
async def test_a_deep_template_hides_no_object(
    control_plane: ControlPlane, prepared: Rest, levels: int
) -> None:
    """The API server stores it; lists and events that hold it must not hide the other objects."""
    honest, domain = f"honest-{levels}", f"deep-test-{levels}"
    namespace_objects(prepared, honest)
    # Services of the other cases stay, without engines that answer, and so do their devices.
    cluster_objects(prepared, domain, f"deep-{levels}")
    deep = pdservice(f"deep-{levels}", TENANT, THEIRS)
    deep["spec"]["prefill"]["template"] = {"spec": {"x": "DEEP"}}
    nested = '{"a":' * levels + "1" + "}" * levels
    path = f"/apis/pdserve.io/v1alpha1/namespaces/{TENANT}/pdservices"
    body = json.dumps(deep).replace('"DEEP"', nested).encode()
    answer = prepared.call("POST", path, body)
    assert answer.code == 201, answer.body

    async def told() -> bool:
        found = await condition(run, PDSERVICES, f"deep-{levels}", TENANT, "Reconciled")
        return found.get("reason") == "ObjectInvalid" and "nested deeper" in found["message"]

    async with operating(control_plane, prepared, [honest]) as run:
        await run.client.create(PDSERVICES, pdservice("flat", honest, domain, devices=1))
        await until(lambda: routed(run, "flat", honest), "the honest service is routed")
        await until(told, "the deep one says what is wrong with it")
        # And as an event of the watch.
        touch = {"metadata": {"labels": {"touched": "yes"}}}
        assert prepared.patch(f"{path}/deep-{levels}", touch, "merge").code == 200
        await run.client.create(PDSERVICES, pdservice("later", honest, domain, devices=1))
        await until(lambda: routed(run, "later", honest), "another honest service is routed")
        assert not run.task.done(), "the operator ended"
