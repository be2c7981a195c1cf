"""Whether an instance is lost, and from when on it would be: one fault, from its pod and node.

The operator decides this, not Kubernetes' taint manager. The rules, first match wins: NodeDeleted,
NodeRefused, PodFailed, NodeLost, DeviceUnhealthy, ImageError, CrashLoop, Unschedulable,
StartupDeadline. A pod that is being deleted is leaving, not faulty; then only the end of its Node
counts, because a pod without its Node cannot end by itself. Neighbours: `observe` calls this,
`startup` judges instances that wait for each other, `repairs` counts the faults, `resize`
substitutes.

Timestamps of others (kubelet, scheduler, API server) come from other clocks: `Since` translates
each to the clock of `now`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdserve.groups.instances import Fault
from pdserve.topology.nodes import NodeView
from pdserve.topology.notices import OUT_OF_SERVICE
from pdserve.topology.pods import UNTOLD, PodView
from pdserve.topology.requests import TERMINAL_PHASES

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
    container that runs (or the end of its download, or the pod's creation) until the engine
    answers, and from then on until it is Ready, unless it waits for others (`startup`).
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
    pod: PodView,
    node: NodeView | None,
    now: float,
    limits: HealthLimits,
    since: Since | None = None,
    silent: float | None = None,
) -> HealthVerdict:
    """Judge one instance.

    Args:
        pod: one of its pods.
        node: the Node it is bound or pinned to; None when no such Node exists.
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
    if pod.deleting:
        return lost
    if pod.phase in TERMINAL_PHASES:
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


def is_silent(node: NodeView | None) -> bool:
    """Whether the Node is gone or not Ready, so that nothing new is known of its pods."""
    return node is None or not node.ready


def _pod_ended(pod: PodView) -> HealthVerdict:
    why = ": ".join(filter(None, (pod.reason, pod.message)))
    told = f"pod phase {pod.phase}" + (f" ({why})" if why else "")
    # A pod that a kubelet rejects has no container that ever ran.
    refused = pod.phase == "Failed" and not pod.ever_ran
    return HealthVerdict("NodeRefused" if refused else "PodFailed", told)


def _node_lost(
    node: NodeView, now: float, limits: HealthLimits, since: Since, silent: float | None
) -> HealthVerdict:
    if node.out_of_service:
        return HealthVerdict("NodeLost", f"node {node.name} has the taint {OUT_OF_SERVICE}")
    if node.ready:
        return HealthVerdict()
    if silent is None:
        changed = node.ready_changed
        silent = 0.0 if changed is None else now - since("NotReady", changed)
    if silent >= limits.node_suspect:
        return HealthVerdict("NodeLost", f"node {node.name} NotReady for {silent:.0f} s")
    return HealthVerdict(recheck_after=limits.node_suspect - silent)


def _device(pod: PodView, node: NodeView) -> HealthVerdict:
    """Unhealthy for sure: told so by the kubelet, named by id, or the pod holds all devices."""
    for device in pod.engine.devices:
        if device.unhealthy:
            return HealthVerdict("DeviceUnhealthy", f"{device.resource} {device.id} is unhealthy")
    if not node.unhealthy:
        return HealthVerdict()
    ids = pod.device_ids
    whole = any(count >= node.capacity.get(r, 1 << 30) for r, count in pod.devices.items())
    sick = node.unhealthy if ids is None and whole else (ids or frozenset()) & node.unhealthy
    if not sick:
        return HealthVerdict()
    listed = ", ".join(str(i) for i in sorted(sick))
    return HealthVerdict("DeviceUnhealthy", f"device {listed} of node {node.name} is unhealthy")


def _image(pod: PodView, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    reason = pod.engine.waiting
    message = f"{reason}: {pod.engine.waiting_message}".rstrip(": ")
    if reason in _BAD_IMAGE:
        return HealthVerdict("ImageError", message)
    if reason not in _PULL_FAILS:
        return HealthVerdict()
    age = now - _began(pod, since, "PodScheduled", pod.scheduled.changed)
    if age >= limits.image_seconds:
        return HealthVerdict("ImageError", message)
    return HealthVerdict(recheck_after=limits.image_seconds - age)


def _crash_loop(pod: PodView, limits: HealthLimits) -> HealthVerdict:
    engine = pod.engine
    if engine.waiting != "CrashLoopBackOff" or engine.restarts < limits.crash_restarts:
        return HealthVerdict()
    return HealthVerdict(
        "CrashLoop",
        f"engine restarted {engine.restarts} times, last exit code {engine.exit_code}",
    )


def unscheduled(pod: PodView) -> str | None:
    """The scheduler's words for why it binds the pod to no node; None while it does not refuse."""
    told = pod.scheduled
    if pod.node or told.status != "False" or told.reason != "Unschedulable":
        return None
    return told.message or "the scheduler gives no reason"


def _unschedulable(pod: PodView, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    said = unscheduled(pod)
    if said is None:
        return HealthVerdict()
    age = now - _began(pod, since, "PodScheduled", pod.scheduled.changed)
    if age >= limits.unschedulable_seconds:
        return HealthVerdict("Unschedulable", f"unscheduled for {age:.0f} s: {said}")
    return HealthVerdict(recheck_after=limits.unschedulable_seconds - age)


def _startup(pod: PodView, now: float, limits: HealthLimits, since: Since) -> HealthVerdict:
    """The engine's own progress: from its start until it answers. `startup` judges the rest."""
    download = pod.download
    if pod.ready.true or answers(pod) or download.running:
        return HealthVerdict()  # a download ends by itself, in a failure where it hardly goes on
    age = now - max(
        _began(pod, since, "created", None),
        _began(pod, since, "running", pod.engine.running_since),
        _began(pod, since, "Ready", pod.ready.changed),
        _began(pod, since, "downloaded", download.ended),
    )
    if age >= limits.startup_deadline:
        return HealthVerdict(
            "StartupDeadline",
            f"the engine does not answer {age:.0f} s after its start, startupDeadlineSeconds is "
            f"{limits.startup_deadline:.0f}",
        )
    return HealthVerdict(recheck_after=limits.startup_deadline - age)


def answers(pod: PodView) -> bool:
    """True once the engine passed its startup probe: its process is up and answers."""
    return pod.engine.started and pod.engine.running


def up_since(pod: PodView, since: Since) -> float | None:
    """When the engine was first seen to answer (seconds, as `since`); None while it does not."""
    return _began(pod, since, "started", pod.engine.running_since) if answers(pod) else None


def ready_since(pod: PodView, since: Since) -> float | None:
    """When Ready became True (seconds, as `since`); None while it is not."""
    return _began(pod, since, "Ready", pod.ready.changed) if pod.ready.true else None


def unready_since(pod: PodView, since: Since) -> float | None:
    """When Ready became other than True (seconds, as `since`).

    None while it is True or not reported.
    """
    if pod.ready.true or pod.ready == UNTOLD:
        return None
    return _began(pod, since, "Ready", pod.ready.changed)


def linked_since(pod: PodView, since: Since) -> float | None:
    """When condition Linked was last seen to be set (seconds, as `since`).

    None while it is not True.
    """
    return _began(pod, since, "Linked", pod.linked.changed) if pod.linked.true else None


def _began(pod: PodView, since: Since, what: str, stamp: float | None) -> float:
    """When something of this pod began: nothing of it is older than itself."""
    birth = since("created", pod.created)
    return birth if stamp is None else max(birth, since(what, stamp))
