"""What a schedule may do to the cluster: faults, plans of users, and unexpected values.

A step is a function of the scene and its own random source; it says what it did, or returns None
where it cannot be done. Each draws from its own seed, so that leaving one out changes no other:
that is what lets a failing schedule be cut down.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst import metrics, values
from pdserve.dst.api_fields import copy
from pdserve.dst.api_net import Faults
from pdserve.dst.scene import BROKEN_IMAGE, SUSPECT_SECONDS, Scene, domain_object
from pdserve.dst.scheduling import is_admitted
from pdserve.dst.world import stamp
from pdserve.dst.world_service import NPU
from pdserve.kube.resource import CONFIGMAPS, NODES, PODS, SECRETS, Object, ObjectKey, Resource
from pdserve.terms.json import JsonObject
from pdserve.wire import names

Step = Callable[[Scene, random.Random], Coroutine[object, object, str | None]]


# --- faults --------------------------------------------------------------------------------------


async def delete_pod(scene: Scene, rng: random.Random) -> str | None:
    """A user deletes an instance."""
    pod = _instance(scene, rng)
    if pod is None:
        return None
    scene.harm([pod])
    scene.owe(pod)
    scene.delete(PODS, pod)
    return f"delete pod {_name(pod)}"


async def kill_pod(scene: Scene, rng: random.Random) -> str | None:
    """An instance fails for good."""
    pod = _instance(scene, rng)
    if pod is None or pod.get("status", {}).get("phase") != "Running":
        return None
    scene.harm([pod])
    scene.owe(pod)
    scene.world.kill(_name(pod))
    return f"pod {_name(pod)} fails"


async def restart_container(scene: Scene, rng: random.Random) -> str | None:
    """An engine's container restarts in place."""
    pod = _instance(scene, rng)
    if pod is None or not pod.get("status", {}).get("podIP"):
        return None
    scene.world.restart(_name(pod), pod["metadata"]["namespace"])
    return f"container of {_name(pod)} restarts"


async def freeze_engine(scene: Scene, rng: random.Random) -> str | None:
    """An engine answers no request for a while."""
    pod = _instance(scene, rng)
    engine = None if pod is None else scene.world.engines.by_ip.get(_ip(pod))
    if pod is None or engine is None or engine.frozen:
        return None
    seconds = rng.uniform(1, 40)
    engine.frozen, engine.stopped_at = True, asyncio.get_running_loop().time()

    def thaw() -> None:
        engine.frozen = False

    scene.later(seconds, thaw)
    return f"engine of {_name(pod)} stands still for {seconds:.0f} s"


async def lose_node(scene: Scene, rng: random.Random) -> str | None:
    """A node is cut off; a long time makes its instances lost, a short one does not."""
    node = rng.choice(scene.nodes())["metadata"]["name"]
    world = scene.world
    if world.broken_nodes:
        return None
    seconds = rng.choice((5.0, 15.0, 60.0, 120.0))
    pods = scene.on_node(node)
    engines = [e for p in pods if (e := world.engines.by_ip.get(_ip(p))) and not e.frozen]
    world.lose_node(node)
    for engine in engines:
        engine.frozen = True
    if seconds > SUSPECT_SECONDS - 5:
        scene.harm(pods)

    def back() -> None:
        world.broken_nodes.discard(node)
        for engine in engines:
            engine.frozen = False
        scene.node_ready(node, "True")

    scene.later(seconds, back)
    return f"node {node} is cut off for {seconds:.0f} s"


async def flap_node(scene: Scene, rng: random.Random) -> str | None:
    """A node is NotReady for less than nodeSuspectSeconds."""
    node = rng.choice(scene.nodes())["metadata"]["name"]
    if node in scene.world.broken_nodes:
        return None
    seconds = rng.uniform(1, SUSPECT_SECONDS - 10)
    scene.node_ready(node, "False")
    scene.later(seconds, lambda: scene.node_ready(node, "True"))
    return f"node {node} is NotReady for {seconds:.0f} s"


async def break_device(scene: Scene, rng: random.Random) -> str | None:
    """All devices of a node are unhealthy for a while."""
    node = rng.choice(scene.nodes())
    name = node["metadata"]["name"]
    scene.harm(scene.on_node(name))
    key = names.ANNOTATION_UNHEALTHY_DEVICES
    scene.patch(node, {"metadata": {"annotations": {key: "0,1,2,3"}}}, NODES)

    def heal() -> None:
        scene.patch(node, {"metadata": {"annotations": {key: None}}}, NODES)

    seconds = rng.uniform(5, 60)
    scene.later(seconds, heal)
    return f"devices of {name} are unhealthy for {seconds:.0f} s"


async def cordon(scene: Scene, rng: random.Random) -> str | None:
    """A node takes no new pods for a while."""
    node = rng.choice(scene.nodes())
    scene.patch(node, {"spec": {"unschedulable": True}}, NODES)

    def undo() -> None:
        scene.patch(node, {"spec": {"unschedulable": None}}, NODES)

    seconds = rng.uniform(5, 60)
    scene.later(seconds, undo)
    return f"cordon {_name(node)} for {seconds:.0f} s"


async def slow_starts(scene: Scene, rng: random.Random) -> str | None:
    """Pods that start from now on take long."""
    world, usual = scene.world, scene.world.start_seconds
    world.start_seconds = (20.0, 80.0)

    def undo() -> None:
        world.start_seconds = usual

    scene.later(rng.uniform(10, 60), undo)
    return "pods start slowly"


async def streams(scene: Scene, rng: random.Random) -> str | None:
    """Instances have requests running."""
    pods = [p for p in scene.live_instances() if rng.random() < 0.5]
    found = [e for p in pods if (e := scene.world.engines.by_ip.get(_ip(p)))]
    engines = [e for e in found if e.linked_once and not e.draining]
    for engine in engines:
        engine.busy = 3

    def done() -> None:
        for engine in engines:
            engine.busy = 0

    seconds = rng.uniform(5, 90)
    scene.later(seconds, done)
    return f"{len(engines)} instances have streams for {seconds:.0f} s"


# --- API server, operator, clocks ----------------------------------------------------------------


async def api_away(scene: Scene, rng: random.Random) -> str | None:
    """The API server answers no request; kubelets cannot renew their leases either."""
    faults = scene.faults
    if faults.down:
        return None
    seconds = rng.choice((2.0, 15.0, 40.0, 120.0))
    scene.watcher.trouble(seconds)
    faults.down = True
    scene.world.api.wake_watches()
    loop = asyncio.get_running_loop()
    marked: list[str] = []
    if seconds >= 40:

        def mark() -> None:
            if faults.down:
                marked.extend(_name(n) for n in scene.nodes())
                for name in marked:
                    scene.node_ready(name, "Unknown")

        loop.call_later(min(38.0, seconds - 1), mark)

    def back() -> None:
        faults.down = False
        scene.world.api.wake_watches()
        for n, name in enumerate(marked):
            if name not in scene.world.broken_nodes:
                loop.call_later(0.5 + n, scene.node_ready, name, "True")

    scene.later(seconds, back)
    return f"the API server is away for {seconds:.0f} s"


async def bad_network(scene: Scene, rng: random.Random) -> str | None:
    """Requests are slow, refused, or lose their answers; watches lag, break, repeat, expire."""
    faults, healthy = scene.faults, Faults()
    seconds = rng.uniform(5, 60)
    scene.watcher.trouble(seconds)
    drawn: JsonObject = {
        "latency": (0.0, rng.choice((0.05, 1.0))), "refuse": rng.choice((0.0, 0.3)),
        "lose_answer": rng.choice((0.0, 0.3)), "watch_delay": (0.0, rng.choice((0.3, 3.0))),
        "watch_break": rng.choice((0.0, 0.1)), "watch_repeat": rng.choice((0.0, 0.3)),
        "watch_swap": rng.choice((0.0, 0.3)), "expire": 0.3,
    }  # fmt: skip
    for field, value in drawn.items():
        setattr(faults, field, value)

    def better() -> None:
        for field in drawn:
            setattr(faults, field, getattr(healthy, field))

    scene.later(seconds, better)
    return f"the network is bad for {seconds:.0f} s"


async def restart_operator(scene: Scene, rng: random.Random) -> str | None:
    """The operator is killed and starts again."""
    if scene.operator_failure():
        return None
    pause = rng.uniform(0, 15)
    scene.watcher.trouble(pause + 5)
    await scene.stop_operator()
    await asyncio.sleep(pause)
    scene.start_operator()
    return f"the operator is killed and starts {pause:.0f} s later"


async def step_clock(scene: Scene, rng: random.Random) -> str | None:
    """The operator's wall clock jumps."""
    step = rng.choice((-3600.0, -60.0, 60.0, 3600.0))
    scene.world.clock_error += step
    return f"the operator's clock steps by {step:.0f} s"


# --- users' plans --------------------------------------------------------------------------------


async def edit_counts(scene: Scene, rng: random.Random) -> str | None:
    """A user scales a ScenarioGroup whose counts are not the user's."""
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    if not group["metadata"].get("ownerReferences"):
        return None
    value = rng.choice((0, 1, 5))
    field, body = rng.choice(
        (("replicas", {"replicas": value}), ("prefill", {"prefill": {"replicas": value}}),
         ("decode", {"decode": {"replicas": value}}))
    )  # fmt: skip
    scene.patch(group, {"spec": body}, SCENARIO_GROUPS)
    return f"kubectl sets {field} of {_name(group)} to {value}"


async def scale_service(scene: Scene, rng: random.Random) -> str | None:
    """A user changes the Fixed counts of a PDService."""
    service = _service(scene, rng)
    if service is None:
        return None
    scenarios = copy(service["spec"]["scenarios"])
    fixed = [s for s in scenarios if s["ratio"]["mode"] == "Fixed"]
    chosen = rng.choice(fixed)
    what = rng.choice(("groups", "prefill", "decode"))
    chosen["ratio"]["fixed"][what] = rng.choice((1, 2))
    _plan(scene, service)
    scene.patch(service, {"spec": {"scenarios": scenarios}}, PDSERVICES)
    scene.watcher.note_authority()
    return f"{_name(service)}/{chosen['name']}: {what} = {chosen['ratio']['fixed'][what]}"


async def new_image(scene: Scene, rng: random.Random) -> str | None:
    """A user rolls out another engine image."""
    service = _service(scene, rng)
    if service is None:
        return None
    image = rng.choice(("pdserve/engine:test", "pdserve/engine:next"))
    _plan(scene, service)
    scene.patch(service, {"spec": {"engine": {"image": image}}}, PDSERVICES)
    return f"{_name(service)}: image {image}"


async def broken_image(scene: Scene, rng: random.Random) -> str | None:
    """A user rolls out an image whose engines never answer, and takes it back."""
    service = _service(scene, rng)
    if service is None:
        return None
    before = service["spec"]["engine"]["image"]
    if before == BROKEN_IMAGE:
        return None
    scene.world.broken_images.add(BROKEN_IMAGE)
    scene.patch(service, {"spec": {"engine": {"image": BROKEN_IMAGE}}}, PDSERVICES)

    def revert() -> None:
        scene.reverts.remove(revert)
        scene.patch(service, {"spec": {"engine": {"image": before}}}, PDSERVICES)

    scene.reverts.append(revert)
    seconds = rng.uniform(3, 60)
    scene.later(seconds, revert)
    return f"{_name(service)}: an image that never answers, for {seconds:.0f} s"


async def rename_model(scene: Scene, rng: random.Random) -> str | None:
    """A user renames the model."""
    service = _service(scene, rng)
    if service is None:
        return None
    name = rng.choice(("tiny", "tiny-2"))
    _plan(scene, service)
    scene.patch(service, {"spec": {"model": {"name": name}}}, PDSERVICES)
    return f"{_name(service)}: model {name}"


async def lose_domain(scene: Scene, rng: random.Random) -> str | None:
    """The RoCEDomain is deleted, and made again later."""
    live = scene.world.api.store(ROCE_DOMAINS).objects.get(ObjectKey("", "az1"))
    if live is None:
        return None
    again, seconds = domain_object(scene), rng.uniform(5, 60)
    scene.delete(ROCE_DOMAINS, live)
    scene.watcher.trouble(seconds)

    def restore() -> None:
        with suppress(Exception):
            scene.world.create(ROCE_DOMAINS, again)

    scene.later(seconds, restore)
    return f"the RoCEDomain is deleted for {seconds:.0f} s"


# --- unexpected values ---------------------------------------------------------------------------


async def poison_pod(scene: Scene, rng: random.Random) -> str | None:
    """A stranger's pod asks for odd quantities, and may look like ours."""
    node = _name(rng.choice(scene.nodes()))
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
            "name": f"stranger-{rng.randrange(10**6)}",
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
    _foreign(scene, PODS, pod)
    return f"a stranger's pod with {limits} and labels {sorted(labels)}"


async def forge_owner(scene: Scene, rng: random.Random) -> str | None:
    """A user of one namespace makes a pod, table or group that claims another's owner."""
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    elsewhere = "team" if group["metadata"]["namespace"] == "default" else "default"
    kind = rng.choice(("pod", "table", "group"))
    meta: JsonObject = {
        "name": f"forged-{rng.randrange(10**6)}",
        "namespace": elsewhere,
        "labels": copy(_some_labels(scene, group)),
        "ownerReferences": [_reference(group, SCENARIO_GROUPS.api_version)],
    }
    if kind == "pod":
        spec = {
            "nodeName": _name(rng.choice(scene.nodes())),
            "containers": [{"name": "engine", "image": "x"}],
        }
        _foreign(scene, PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    elif kind == "table":
        data = {names.KEY_PEERS: values.text(rng)}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
        _foreign(scene, CONFIGMAPS, body)
    else:
        owner = scene.world.api.store(PDSERVICES).objects.get(
            ObjectKey(group["metadata"]["namespace"], group["spec"]["service"])
        )
        if owner is None:
            return None
        meta["ownerReferences"] = [_reference(owner, PDSERVICES.api_version)]
        forged = {**copy(group["spec"]), "replicas": 0}
        with suppress(Exception):
            scene.world.create(
                SCENARIO_GROUPS,
                {"apiVersion": names.API_VERSION, "kind": "ScenarioGroup", "metadata": meta,
                 "spec": forged},
            )  # fmt: skip
    return f"a {kind} in {elsewhere} claims the owner of {_name(group)}"


async def poison_node(scene: Scene, rng: random.Random) -> str | None:
    """A node's annotations, labels or other resources say something odd."""
    node = rng.choice(scene.nodes())
    key = rng.choice((names.ANNOTATION_ROCE_DEVICES, "pdserve.io/other"))
    body: Object = {"metadata": {"annotations": {key: values.text(rng)}}}
    scene.patch(node, body, NODES)
    odd = {"example.com/x": values.quantity(rng), "cpu": values.quantity(rng)}
    scene.patch(node, {"status": {"allocatable": odd, "capacity": odd}}, NODES, "status")
    cpu = {"cpu": node["status"]["allocatable"]["cpu"]}

    def heal() -> None:
        """A kubelet states its CPU again; of the odd resource it knows nothing."""
        scene.patch(node, {"status": {"allocatable": cpu, "capacity": cpu}}, NODES, "status")

    scene.later(30, heal)
    return f"node {_name(node)}: {key} and {odd}"


async def poison_answers(scene: Scene, rng: random.Random) -> str | None:
    """An engine answers the linker with odd values for a while."""
    pod = _instance(scene, rng)
    if pod is None or not _ip(pod):
        return None
    if rng.random() < 0.5:  # a new process is asked for its links
        scene.world.restart(_name(pod), pod["metadata"]["namespace"])
    engine = scene.world.engines.by_ip.get(_ip(pod))
    if engine is None:
        return None
    seed = rng.random()
    engine.lies = lambda answer: values.spoiled(answer, random.Random(seed))

    def truth() -> None:
        engine.lies = None

    seconds = rng.uniform(3, 30)
    scene.later(seconds, truth)
    return f"engine of {_name(pod)} lies for {seconds:.0f} s"


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
    return f"{_name(table)}: {text[:60]!r}"


async def poison_secret(scene: Scene, rng: random.Random) -> str | None:
    """A credentials Secret holds odd bytes for a while, or is gone for good."""
    secrets = scene.world.seen(SECRETS)
    if not secrets:
        return None
    secret = rng.choice(secrets)
    if rng.random() < 0.3:
        scene.delete(SECRETS, secret)
        return f"Secret {_name(secret)} is deleted"
    good = dict(secret.get("data") or {})
    odd = dict.fromkeys(good or ("token",), rng.choice(("/////w==", "", "AA==")))
    seconds = rng.uniform(5, 60)
    scene.patch(secret, {"data": odd}, SECRETS)
    scene.later(seconds, lambda: scene.patch(secret, {"data": good}, SECRETS))
    return f"Secret {_name(secret)} holds odd bytes for {seconds:.0f} s"


async def poison_status(scene: Scene, rng: random.Random) -> str | None:
    """Times in a pod's or ScenarioGroup's status are far from now."""
    if rng.random() < 0.5:
        pod = _instance(scene, rng)
        if pod is None:
            return None
        old = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
        changed = [{**c, "lastTransitionTime": values.when(rng)} for c in old.values()]
        body: JsonObject = {"status": {"startTime": values.when(rng), "conditions": changed}}
        scene.patch(pod, body, PODS, "status")
        return f"times of pod {_name(pod)}"
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    repairs: list[JsonObject] = [
        {"slot": f"{_name(group)}-0-p0", "failures": rng.choice((1, 30, 2**31 - 1)),
         "lastFailureTime": values.when(rng), "notBeforeTime": values.when(rng),
         "suspectNode": rng.choice(("a-0", "nowhere")), "fault": "PodFailed"}
    ]  # fmt: skip
    scene.patch(group, {"status": {"repairs": repairs}}, SCENARIO_GROUPS, "status")
    return f"repairs of {_name(group)}: {repairs}"


async def lying_metrics(scene: Scene, rng: random.Random) -> str | None:
    """Prometheus says what cannot be."""
    watcher = scene.watcher
    scene.metrics.lie = metrics.lie(rng)
    watcher.lying = True

    def honest() -> None:
        scene.metrics.lie = None

    def trusted() -> None:
        watcher.lying = scene.metrics.lie is not None

    seconds = rng.uniform(20, 120)
    scene.later(seconds, honest)
    scene.later(seconds + 1, trusted)
    return f"metrics lie for {seconds:.0f} s"


STEPS: Final[dict[str, tuple[float, Step]]] = {
    step.__name__: (weight, step)
    for weight, step in (
        (3.0, delete_pod), (2.0, kill_pod), (1.0, restart_container), (1.0, freeze_engine),
        (1.5, lose_node), (1.5, flap_node), (0.7, break_device), (0.7, cordon), (0.7, slow_starts),
        (2.5, streams), (2.0, api_away), (1.5, bad_network), (1.5, restart_operator),
        (1.5, step_clock), (2.0, edit_counts), (1.0, scale_service), (1.0, new_image),
        (1.0, broken_image), (0.7, rename_model), (0.7, lose_domain), (2.0, poison_pod),
        (1.5, forge_owner), (1.0, poison_node), (1.5, poison_answers), (1.5, poison_table),
        (0.7, poison_secret), (1.0, poison_status), (1.0, lying_metrics),
    )
}  # fmt: skip
"""Every step by name, with its weight in the draw."""


def _instance(scene: Scene, rng: random.Random) -> Object | None:
    pods = scene.live_instances()
    return rng.choice(pods) if pods else None


def _service(scene: Scene, rng: random.Random) -> Object | None:
    services = [s for s in scene.world.seen(PDSERVICES) if _name(s) in ("shop", "mart")]
    return rng.choice(services) if services else None


def _plan(scene: Scene, service: Object) -> None:
    scene.planned.add(_name(service))


def _foreign(scene: Scene, resource: Resource, obj: Object) -> None:
    with suppress(Exception):
        made = scene.world.create(resource, obj)
        scene.watcher.foreign.add(made["metadata"]["uid"])
        if resource == PODS:
            status = {"phase": "Running", "podIP": "127.9.9.9", "startTime": stamp()}
            if not _admitted(scene, made):
                status = {"phase": "Failed", "reason": "OutOfcpu", "startTime": stamp()}
            scene.patch(made, {"status": status}, PODS, "status")


def _admitted(scene: Scene, pod: Object) -> bool:
    """Whether the kubelet of the node that a stranger names takes the pod."""
    node = pod["spec"]["nodeName"]
    others = [
        p for p in scene.world.seen(PODS)
        if p["spec"].get("nodeName") == node and p["metadata"]["uid"] != pod["metadata"]["uid"]
    ]  # fmt: skip
    found = scene.world.get(NODES, node, "")
    return found is not None and is_admitted(pod, found, others)


def _some_labels(scene: Scene, group: Object) -> dict[str, str]:
    uid = group["metadata"]["uid"]
    for pod in scene.world.instances():
        if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", ())):
            return dict(pod["metadata"]["labels"])
    return {}


def _reference(owner: Object, api_version: str) -> Object:
    meta = owner["metadata"]
    return {
        "apiVersion": api_version, "kind": owner["kind"], "name": meta["name"],
        "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _ip(pod: Object) -> str:
    return str(pod.get("status", {}).get("podIP", ""))
