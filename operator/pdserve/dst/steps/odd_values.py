"""Steps that put wrong, huge, deep, foreign or missing values into objects and answers."""

from __future__ import annotations

import json
import random
from contextlib import suppress

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst import metrics, values
from pdserve.dst.api_fields import copy
from pdserve.dst.scene import Scene
from pdserve.dst.steps.picks import (
    an_instance,
    controller_reference,
    ip_of,
    make_foreign,
    name_of,
    some_labels,
)
from pdserve.dst.world import CPU
from pdserve.dst.world_service import NPU
from pdserve.kube.resource import CONFIGMAPS, NODES, PODS, SECRETS, Object, ObjectKey
from pdserve.terms.json import JsonObject
from pdserve.wire import names


async def poison_pod(scene: Scene, rng: random.Random) -> str | None:
    """A foreign pod asks for odd quantities, and may look like ours."""
    node = name_of(rng.choice(scene.nodes()))
    limits = {"cpu": values.quantity(rng), rng.choice(("example.com/x", NPU)): "0"}
    limits[rng.choice(("example.com/x", "hugepages-2Mi"))] = values.quantity(rng)
    labels: dict[str, str] = {}
    if rng.random() < 0.5:
        labels = {
            names.LABEL_MANAGED_BY: names.FIELD_MANAGER, names.LABEL_ROLE: rng.choice(
                ("prefill", "decode", "other")
            ), names.LABEL_GROUP_INDEX: rng.choice(("0", "x", "-1", "9" * 60)),
            names.LABEL_SERVICE: "shop", names.LABEL_SCENARIO: "chat",
        }  # fmt: skip
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"foreign-{rng.randrange(10**6)}",
            "namespace": rng.choice(("default", "team")),
            "labels": labels,
            "annotations": {
                names.ANNOTATION_DRAIN: values.text(rng),
                names.ANNOTATION_REPLACES: values.text(rng),
            },
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "x", "resources": {"limits": limits}}],
        },
    }
    make_foreign(scene, PODS, pod)
    return f"a foreign pod with {limits} and labels {sorted(labels)}"


async def forge_owner(scene: Scene, rng: random.Random) -> str | None:
    """A user of one namespace makes a pod, table or group that claims another's owner."""
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    elsewhere = "team" if group["metadata"]["namespace"] == "default" else "default"
    kind = rng.choice(("pod", "table", "group"))
    meta: JsonObject = {
        "name": f"forged-{rng.randrange(10**6)}",
        "namespace": elsewhere,
        "labels": copy(some_labels(scene, group)),
        "ownerReferences": [controller_reference(group, SCENARIO_GROUPS.api_version)],
    }
    if kind == "pod":
        spec = {
            "nodeName": name_of(rng.choice(scene.nodes())),
            "containers": [{"name": "engine", "image": "x"}],
        }
        make_foreign(
            scene, PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        )
    elif kind == "table":
        data = {names.KEY_PEERS: values.text(rng)}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
        make_foreign(scene, CONFIGMAPS, body)
    else:
        owner = scene.world.api.store(PDSERVICES).objects.get(
            ObjectKey(group["metadata"]["namespace"], group["spec"]["service"])
        )
        if owner is None:
            return None
        meta["ownerReferences"] = [controller_reference(owner, PDSERVICES.api_version)]
        forged = {**copy(group["spec"]), "replicas": 0}
        with suppress(Exception):
            scene.world.create(
                SCENARIO_GROUPS,
                {"apiVersion": names.API_VERSION, "kind": "ScenarioGroup", "metadata": meta,
                 "spec": forged},
            )  # fmt: skip
    return f"a {kind} in {elsewhere} claims the owner of {name_of(group)}"


async def poison_node(scene: Scene, rng: random.Random) -> str | None:
    """A node's annotations, labels or other resources say something odd."""
    node = rng.choice(scene.nodes())
    key = rng.choice((names.ANNOTATION_ROCE_DEVICES, "pdserve.io/other"))
    body: Object = {"metadata": {"annotations": {key: values.text(rng)}}}
    scene.patch(node, body, NODES)
    odd = {"example.com/x": values.quantity(rng), "cpu": values.quantity(rng)}
    scene.patch(node, {"status": {"allocatable": odd, "capacity": odd}}, NODES, "status")
    cpu = {"cpu": CPU}

    def heal() -> None:
        """A kubelet states its CPU again; of the odd resource it knows nothing."""
        scene.patch(node, {"status": {"allocatable": cpu, "capacity": cpu}}, NODES, "status")

    scene.later(30, heal)
    return f"node {name_of(node)}: {key} and {odd}"


async def poison_answers(scene: Scene, rng: random.Random) -> str | None:
    """An engine answers the linker with odd values for a while."""
    pod = an_instance(scene, rng)
    if pod is None or not ip_of(pod):
        return None
    if rng.random() < 0.5:  # a new process is asked for its links
        scene.world.machinery.restart(name_of(pod), pod["metadata"]["namespace"])
    engine = scene.world.engines.by_ip.get(ip_of(pod))
    if engine is None:
        return None
    seed = rng.random()
    engine.spoil = lambda answer: values.spoiled(answer, random.Random(seed))

    def truth() -> None:
        engine.spoil = None

    seconds = rng.uniform(3, 30)
    scene.later(seconds, truth)
    return f"engine of {name_of(pod)} answers wrongly for {seconds:.0f} s"


async def poison_table(scene: Scene, rng: random.Random) -> str | None:
    """A user overwrites a peer or route table."""
    tables = [
        c for c in scene.world.seen(CONFIGMAPS)
        if {names.KEY_PEERS, names.KEY_ROUTES} & set(c.get("data") or {})
        and c["metadata"]["uid"] not in scene.watcher.foreign
    ]  # fmt: skip
    if not tables:
        return None
    table = rng.choice(tables)
    key = names.KEY_PEERS if names.KEY_PEERS in table["data"] else names.KEY_ROUTES
    try:
        before = json.loads(table["data"][key])
    except (ValueError, RecursionError):
        before = None  # it was overwritten before
    if rng.random() < 0.5 or before is None:
        text = values.text(rng)
    else:
        text = json.dumps(values.spoiled(before, rng))
    scene.patch(table, {"data": {key: text}}, CONFIGMAPS)
    return f"{name_of(table)}: {text[:60]!r}"


async def poison_secret(scene: Scene, rng: random.Random) -> str | None:
    """A credentials Secret holds odd bytes for a while, or is gone for good."""
    secrets = scene.world.seen(SECRETS)
    if not secrets:
        return None
    secret = rng.choice(secrets)
    if rng.random() < 0.3:
        scene.delete(SECRETS, secret)
        return f"Secret {name_of(secret)} is deleted"
    good = dict(secret.get("data") or {})
    odd = dict.fromkeys(good or ("token",), rng.choice(("/////w==", "", "AA==")))
    seconds = rng.uniform(5, 60)
    scene.patch(secret, {"data": odd}, SECRETS)
    scene.later(seconds, lambda: scene.patch(secret, {"data": good}, SECRETS))
    return f"Secret {name_of(secret)} holds odd bytes for {seconds:.0f} s"


async def poison_status(scene: Scene, rng: random.Random) -> str | None:
    """Times in a pod's or ScenarioGroup's status are far from now."""
    if rng.random() < 0.5:
        pod = an_instance(scene, rng)
        if pod is None:
            return None
        old = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
        changed = [{**c, "lastTransitionTime": values.when(rng)} for c in old.values()]
        body: JsonObject = {"status": {"startTime": values.when(rng), "conditions": changed}}
        scene.patch(pod, body, PODS, "status")
        return f"times of pod {name_of(pod)}"
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    repairs: list[JsonObject] = [
        {"slot": f"{name_of(group)}-0-p0", "failures": rng.choice((1, 30, 2**31 - 1)),
         "lastFailureTime": values.when(rng), "notBeforeTime": values.when(rng),
         "suspectNode": rng.choice(("a-0", "nowhere")), "fault": "PodFailed"}
    ]  # fmt: skip
    scene.patch(group, {"status": {"repairs": repairs}}, SCENARIO_GROUPS, "status")
    # As after so many faults, the next repair may have to wait, for a bounded time.
    scene.faulted.add((group["metadata"]["namespace"], repairs[0]["slot"]))
    return f"repairs of {name_of(group)}: {repairs}"


async def false_metrics(scene: Scene, rng: random.Random) -> str | None:
    """Prometheus returns values that cannot be."""
    watcher = scene.watcher
    scene.metrics.spoil = metrics.spoiling(rng)
    watcher.metrics_are_false = True

    def honest() -> None:
        scene.metrics.spoil = None

    def trusted() -> None:
        watcher.metrics_are_false = scene.metrics.spoil is not None

    seconds = rng.uniform(20, 120)
    scene.later(seconds, honest)
    scene.later(seconds + 1, trusted)
    return f"metrics are false for {seconds:.0f} s"
