"""Pod status as the kubelet reports it, made from the states of the containers. Pure.

Conditions of readiness gates are read, never written: their owners write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localcluster.agent.images import full_name
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap, JsonObject


@dataclass(frozen=True, slots=True)
class WaitingState:
    """Not running yet, or between two runs."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunningState:
    """A process runs; `started_at` is RFC 3339."""

    started_at: str
    container_id: str


@dataclass(frozen=True, slots=True)
class TerminatedState:
    """A run that ended; `exit_code` is 128 + signal when a signal ended it."""

    exit_code: int
    reason: str
    started_at: str
    finished_at: str
    container_id: str
    message: str = ""


State = WaitingState | RunningState | TerminatedState


@dataclass(frozen=True, slots=True)
class LocalContainer:
    """One container at one moment."""

    name: str
    image: str
    state: State
    last: TerminatedState | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    final: bool = False
    """Terminated and not to be started again."""


@dataclass(frozen=True, slots=True)
class LocalPod:
    """Everything the status of a pod says, at one moment."""

    containers: tuple[LocalContainer, ...]
    init: tuple[LocalContainer, ...]
    pod_ip: str
    node_ip: str
    start_time: str
    sandbox: bool = True
    """What containers share is made: volumes and the address, which is not told before."""
    host_network: bool = False
    rejected: tuple[str, str] | None = None
    """(reason, message) when the node did not admit the pod at all."""
    failed: tuple[str, str] | None = None
    """(reason, message) when the node ended the pod for good."""


def pod_status(pod: Object, view: LocalPod, now: str) -> JsonObject:
    """The `status` to send. Transition times of unchanged conditions are kept from `pod`."""
    old = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
    generation = pod["metadata"].get("generation")
    seen = {} if generation is None else {"observedGeneration": generation}
    if view.rejected is not None:
        reason, message = view.rejected
        return {
            "phase": "Failed",
            "reason": reason,
            "message": message,
            "startTime": view.start_time,
            **seen,
        }
    conditions = [
        _timed(condition, old.get(condition["type"]), now) | seen
        for condition in _conditions(pod, view, old)
    ]
    status: JsonObject = {
        "phase": phase(pod, view),
        "startTime": view.start_time,
        "hostIP": view.node_ip,
        "hostIPs": [{"ip": view.node_ip}],
        "conditions": conditions,
        "containerStatuses": [_container_status(c, init=False) for c in view.containers],
        **seen,
    }
    if view.sandbox or view.host_network:
        # A strategic merge would add to the addresses that were told before.
        status |= {"podIP": view.pod_ip, "podIPs": [{"ip": view.pod_ip}, {"$patch": "replace"}]}
    else:
        status |= {"podIP": None, "podIPs": None}
    if view.failed is not None:
        status["reason"], status["message"] = view.failed
    if view.init:
        status["initContainerStatuses"] = [_container_status(c, init=True) for c in view.init]
    return status


def phase(pod: Object, view: LocalPod) -> str:
    """Pending, Running, Succeeded or Failed, by the kubelet's rules."""
    if view.failed is not None:
        return "Failed"
    if any(c.final and _exit(c) != 0 for c in view.init):
        return "Failed"
    if not initialized(view):
        return "Pending"
    if all(c.final for c in view.containers):
        return "Failed" if any(_exit(c) != 0 for c in view.containers) else "Succeeded"
    if any(isinstance(c.state, WaitingState) and c.last is None for c in view.containers):
        return "Pending"
    return "Running"


def initialized(view: LocalPod) -> bool:
    """All init containers have ended well."""
    return all(c.final and _exit(c) == 0 for c in view.init)


def _exit(container: LocalContainer) -> int:
    return container.state.exit_code if isinstance(container.state, TerminatedState) else -1


def _conditions(pod: Object, view: LocalPod, old: Mapping[str, JsonMap]) -> list[JsonObject]:
    at_end = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase(pod, view))
    # A failed pod's last containers may still be on their way out.
    ended = at_end is not None and not any(
        isinstance(c.state, RunningState) for c in (*view.containers, *view.init)
    )
    ready, problem = _readiness(pod, view, old)
    unready = [c.name for c in view.containers if not c.ready]
    containers = ("ContainersNotReady", _names(unready, "unready"))
    waiting = [c.name for c in view.init if not (c.final and _exit(c) == 0)]
    result = [
        _condition("PodReadyToStartContainers", view.sandbox and not ended),
        _condition(
            "Initialized",
            not waiting,
            "ContainersNotInitialized",
            _names(waiting, "incomplete"),
        ),
        _condition("Ready", ready and at_end is None, *((at_end, "") if at_end else problem)),
        _condition(
            "ContainersReady",
            not unready and at_end is None,
            *((at_end, "") if at_end else containers),
        ),
    ]
    if at_end == "PodCompleted":
        result[1]["reason"] = at_end
    result.append(_condition("PodScheduled", True))
    return result


def _readiness(
    pod: Object, view: LocalPod, old: Mapping[str, JsonMap]
) -> tuple[bool, tuple[str, str]]:
    unready = [c.name for c in view.containers if not c.ready]
    if unready:
        return False, ("ContainersNotReady", _names(unready, "unready"))
    missing = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        value = old.get(kind, {}).get("status")
        if value is None:
            missing.append(
                f'corresponding condition of pod readiness gate "{kind}" does not exist.'
            )
        elif value != "True":
            missing.append(f'the status of pod readiness gate "{kind}" is not "True", but {value}')
    if missing:
        return False, ("ReadinessGatesNotReady", ", ".join(missing))
    return True, ("", "")


def _names(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    return f"containers with {what} status: [{' '.join(names)}]"


def _condition(kind: str, ok: bool, reason: str = "", message: str = "") -> JsonObject:
    # Null removes what an earlier status said: a strategic merge keeps absent fields.
    return {
        "type": kind,
        "status": "True" if ok else "False",
        "reason": None if ok or not reason else reason,
        "message": None if ok or not message else message,
    }


def _timed(condition: JsonObject, old: JsonMap | None, now: str) -> JsonObject:
    kept = old is not None and old.get("status") == condition["status"]
    since = old.get("lastTransitionTime") if kept and old is not None else None
    return {**condition, "lastTransitionTime": since or now}


def _container_status(view: LocalContainer, *, init: bool) -> JsonObject:
    current = getattr(view.state, "container_id", "") or (
        view.last.container_id if view.last is not None else ""
    )
    status: JsonObject = {
        "name": view.name,
        "image": full_name(view.image) if current else view.image,
        "imageID": full_name(view.image) if current else "",
        # A completed init container counts as ready.
        "ready": view.ready or (init and view.final and _exit(view) == 0),
        "started": view.started,
        "restartCount": view.restarts,
        "state": _state(view.state),
        "lastState": {} if view.last is None else _state(view.last),
    }
    if current:
        status["containerID"] = current
    return status


def _state(state: State) -> JsonObject:
    if isinstance(state, WaitingState):
        body = {"reason": state.reason}
        return {"waiting": body | ({"message": state.message} if state.message else {})}
    if isinstance(state, RunningState):
        return {"running": {"startedAt": state.started_at}}
    ended: JsonObject = {
        "exitCode": state.exit_code,
        "reason": state.reason,
        "startedAt": state.started_at,
        "finishedAt": state.finished_at,
        "containerID": state.container_id,
    }
    if state.message:
        ended["message"] = state.message
    return {"terminated": ended}
