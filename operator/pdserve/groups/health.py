"""Is an instance lost, and since when would it be? One fault per instance, from its pod and node.

The operator, not Kubernetes' taint manager, decides this. The rules, first match wins:
NodeDeleted, NodeRefused, PodFailed, NodeLost, DeviceUnhealthy, ImageError, CrashLoop,
Unschedulable, StartupDeadline. A pod that is being deleted is leaving, not faulty: only the end
of its Node counts, because nothing else can end it then. Neighbours: `observe` calls this,
`startup` judges instances that wait for each other, `repairs` counts the faults, `resize`
substitutes.

Times that others wrote (kubelet, scheduler, API server) are of other clocks: `Since` translates
each to the clock of `now`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pdserve.frozen import remembered
from pdserve.groups.instances import Fault
from pdserve.terms.json import JsonMap
from pdserve.terms.times import timestamp
from pdserve.topology.nodes import node_view
from pdserve.topology.requests import is_extended, pod_devices
from pdserve.wire import names

ENGINE_CONTAINER = "engine"
_BAD_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_PULL_FAILS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"}
)


Since = Callable[[str, float], float]
"""`since(what, stamp)`: when `what` began on the reader's clock, though `stamp` is another's."""


def clamped(now: float) -> Since:
    """Take stamps as they are, but none later than `now` (seconds since the epoch)."""
    return lambda _what, stamp: min(stamp, now)


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Thresholds; times in seconds.

    `crash_restarts`: restarts of the engine container after which back-off means a crash loop.
    `image_seconds`: how long image pulls may fail. `startup_deadline`: from the start of the
    container that runs (or the pod's creation) until the engine answers, and from then on until
    it is Ready, unless it waits for others (`startup`).
    """

    node_suspect: float = 30.0
    crash_restarts: int = 3
    image_seconds: float = 60.0
    unschedulable_seconds: float = 15.0
    startup_deadline: float = 900.0


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The fault, if any, in words; and seconds until a running deadline would change it."""

    fault: Fault | None = None
    message: str = ""
    recheck_after: float | None = None


def classify(
    pod: JsonMap,
    node: JsonMap | None,
    now: float,
    limits: HealthLimits,
    since: Since | None = None,
    silent: float | None = None,
) -> HealthVerdict:
    """Judge one instance.

    Args:
        pod: the raw Pod.
        node: the raw Node it is bound or pinned to; None when no such Node exists.
        now: seconds since the epoch.
        limits: thresholds.
        since: translates stamps; None: `clamped`.
        silent: seconds for which the reader itself saw the Node without Ready while the API
            server answered; None: reckon from the Node's own transition time.
    """
    if node is None:
        return HealthVerdict("NodeDeleted", "its Node no longer exists")
    began = clamped(now) if since is None else since
    lost = _node_lost(node, now, limits, began, silent)
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return lost
    if pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        return _pod_ended(pod)
    verdicts = [
        lost,
        _device(pod, node),
        _image(pod, now, limits, began),
        _crash_loop(pod, limits),
        _unschedulable(pod, now, limits, began),
        # What a silent node last said of a pod is old: the node's own deadline runs.
        HealthVerdict() if is_silent(node) else _startup(pod, now, limits, began),
    ]
    for verdict in verdicts:
        if verdict.fault is not None:
            return verdict
    waits = [v.recheck_after for v in verdicts if v.recheck_after is not None]
    return HealthVerdict(recheck_after=min(waits) if waits else None)


def is_silent(node: JsonMap | None) -> bool:
    """Whether the Node is gone or not Ready, so that nothing new is known of its pods."""
    return node is None or not node_view(node).ready


@remembered
def engine_status(pod: JsonMap) -> JsonMap:
    """Status of the engine container: the one of that name, else the first; {} before it exists."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    for status in statuses:
        if status.get("name") == ENGINE_CONTAINER:
            return dict(status)
    return dict(statuses[0]) if statuses else {}


def condition(pod: JsonMap, kind: str) -> JsonMap:
    """One condition of a Pod or Node; {} where absent."""
    return _conditions(pod).get(kind, _NO_CONDITION)


_NO_CONDITION: JsonMap = {}


@remembered
def _conditions(obj: JsonMap) -> Mapping[str, JsonMap]:
    """By type; of two with one type, the first counts."""
    found: dict[str, JsonMap] = {}
    for entry in obj.get("status", {}).get("conditions") or ():
        if isinstance(entry.get("type"), str):
            found.setdefault(entry["type"], dict(entry))
    return found


@remembered
def device_ids(pod: JsonMap) -> frozenset[int] | None:
    """Device ids this pod was given (`allocatedResourcesStatus`, KEP-4680); None if not told."""
    found: set[int] = set()
    told = False
    for resource, entry in _allocated(pod):
        told = told or is_extended(resource)
        number = re.search(r"(\d+)$", str(entry.get("resourceID", "")))
        if number is not None:
            found.add(int(number.group(1)))
    return frozenset(found) if told else None


def _pod_ended(pod: JsonMap) -> HealthVerdict:
    status = pod["status"]
    why = ": ".join(str(status[k]) for k in ("reason", "message") if status.get(k))
    told = f"pod phase {status['phase']}" + (f" ({why})" if why else "")
    if status["phase"] == "Failed" and not _ever_ran(status):
        return HealthVerdict("NodeRefused", told)
    return HealthVerdict("PodFailed", told)


def _ever_ran(status: JsonMap) -> bool:
    """Whether a container of the pod was started; a pod that a kubelet rejects has none."""
    kinds = ("initContainerStatuses", "containerStatuses")
    listed = (s for kind in kinds for s in status.get(kind) or ())
    states = (s.get(key) or {} for s in listed for key in ("state", "lastState"))
    return any("running" in state or "terminated" in state for state in states)


def _node_lost(
    node: JsonMap, now: float, limits: HealthLimits, since: Since, silent: float | None
) -> HealthVerdict:
    ready = condition(node, "Ready")
    if ready.get("status") == "True":
        return HealthVerdict()
    if silent is None:
        changed = timestamp(ready.get("lastTransitionTime"))
        silent = 0.0 if changed is None else now - since("NotReady", changed)
    if silent >= limits.node_suspect:
        return HealthVerdict(
            "NodeLost", f"node {node['metadata']['name']} NotReady for {silent:.0f} s"
        )
    return HealthVerdict(recheck_after=limits.node_suspect - silent)


def _device(pod: JsonMap, node: JsonMap) -> HealthVerdict:
    """Unhealthy for sure: told so by the kubelet, named by id, or the pod holds all devices."""
    for resource, entry in _allocated(pod):
        if entry.get("health") == "Unhealthy":
            return HealthVerdict(
                "DeviceUnhealthy", f"{resource} {entry.get('resourceID')} is unhealthy"
            )
    view = node_view(node)
    if not view.unhealthy:
        return HealthVerdict()
    ids = device_ids(pod)
    held = pod_devices(pod)
    whole = any(count >= view.capacity.get(r, 1 << 30) for r, count in held.items())
    sick = view.unhealthy if ids is None and whole else (ids or frozenset()) & view.unhealthy
    if not sick:
        return HealthVerdict()
    listed = ", ".join(str(i) for i in sorted(sick))
    return HealthVerdict("DeviceUnhealthy", f"device {listed} of node {view.name} is unhealthy")


def _image(pod: JsonMap, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    waiting = engine_status(pod).get("state", {}).get("waiting") or {}
    reason = waiting.get("reason")
    message = f"{reason}: {waiting.get('message', '')}".rstrip(": ")
    if reason in _BAD_IMAGE:
        return HealthVerdict("ImageError", message)
    if reason not in _PULL_FAILS:
        return HealthVerdict()
    scheduled = timestamp(condition(pod, "PodScheduled").get("lastTransitionTime"))
    age = now - _began(pod, since, "PodScheduled", scheduled)
    if age >= limits.image_seconds:
        return HealthVerdict("ImageError", message)
    return HealthVerdict(recheck_after=limits.image_seconds - age)


def _crash_loop(pod: JsonMap, limits: HealthLimits) -> HealthVerdict:
    status = engine_status(pod)
    waiting = status.get("state", {}).get("waiting") or {}
    restarts = int(status.get("restartCount") or 0)
    if waiting.get("reason") != "CrashLoopBackOff" or restarts < limits.crash_restarts:
        return HealthVerdict()
    last = status.get("lastState", {}).get("terminated") or {}
    return HealthVerdict(
        "CrashLoop", f"engine restarted {restarts} times, last exit code {last.get('exitCode')}"
    )


def unscheduled(pod: JsonMap) -> str | None:
    """The scheduler's words for why it binds the pod to no node; None while it does not refuse."""
    if pod.get("spec", {}).get("nodeName"):
        return None
    found = condition(pod, "PodScheduled")
    if found.get("status") != "False" or found.get("reason") != "Unschedulable":
        return None
    return str(found.get("message") or "the scheduler gives no reason")


def _unschedulable(pod: JsonMap, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    said = unscheduled(pod)
    if said is None:
        return HealthVerdict()
    found = condition(pod, "PodScheduled")
    told = timestamp(found.get("lastTransitionTime"))
    age = now - _began(pod, since, "PodScheduled", told)
    if age >= limits.unschedulable_seconds:
        return HealthVerdict("Unschedulable", f"unscheduled for {age:.0f} s: {said}")
    return HealthVerdict(recheck_after=limits.unschedulable_seconds - age)


def _startup(pod: JsonMap, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    """The engine's own progress: from its start until it answers. `startup` judges the rest."""
    if condition(pod, "Ready").get("status") == "True" or answers(pod):
        return HealthVerdict()
    running = engine_status(pod).get("state", {}).get("running") or {}
    ready = condition(pod, "Ready")
    age = now - max(
        _began(pod, since, "created", None),
        _began(pod, since, "running", timestamp(running.get("startedAt"))),
        _began(pod, since, "Ready", timestamp(ready.get("lastTransitionTime"))),
    )
    if age >= limits.startup_deadline:
        return HealthVerdict(
            "StartupDeadline",
            f"the engine does not answer {age:.0f} s after its start, startupDeadlineSeconds is "
            f"{limits.startup_deadline:.0f}",
        )
    return HealthVerdict(recheck_after=limits.startup_deadline - age)


def answers(pod: JsonMap) -> bool:
    """True once the engine passed its startup probe: its process is up and answers."""
    status = engine_status(pod)
    return status.get("started") is True and "running" in (status.get("state") or {})


def up_since(pod: JsonMap, since: Since) -> float | None:
    """When the engine was first seen to answer; None while it does not."""
    if not answers(pod):
        return None
    running = engine_status(pod)["state"]["running"] or {}
    return _began(pod, since, "started", timestamp(running.get("startedAt")))


def ready_since(pod: JsonMap, since: Since) -> float | None:
    """When Ready became True; None while it is not."""
    ready = condition(pod, "Ready")
    if ready.get("status") != "True":
        return None
    return _began(pod, since, "Ready", timestamp(ready.get("lastTransitionTime")))


def unready_since(pod: JsonMap, since: Since) -> float | None:
    """When Ready became other than True; None while it is True or not reported."""
    ready = condition(pod, "Ready")
    if ready.get("status") == "True" or not ready:
        return None
    return _began(pod, since, "Ready", timestamp(ready.get("lastTransitionTime")))


def linked_since(pod: JsonMap, since: Since) -> float | None:
    """When condition Linked was last seen to be set; None while it is not True."""
    linked = condition(pod, names.CONDITION_LINKED)
    if linked.get("status") != "True":
        return None
    return _began(pod, since, "Linked", timestamp(linked.get("lastTransitionTime")))


def _began(pod: JsonMap, since: Since, what: str, stamp: float | None) -> float:
    """When something of this pod began: nothing of it is older than itself."""
    birth = since("created", created(pod))
    return birth if stamp is None else max(birth, since(what, stamp))


def created(pod: JsonMap) -> float:
    """Creation time of an object, seconds since the epoch (0 where absent)."""
    return timestamp(pod.get("metadata", {}).get("creationTimestamp")) or 0.0


def _allocated(pod: JsonMap) -> Iterable[tuple[str, JsonMap]]:
    for resource in engine_status(pod).get("allocatedResourcesStatus") or ():
        for entry in resource.get("resources") or ():
            yield str(resource.get("name", "")), entry
