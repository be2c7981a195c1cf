"""What the kubelet reports of one container of a pod. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.terms.json import JsonMap
from pdserve.terms.raw import part, parts, text, whole
from pdserve.terms.times import timestamp


@dataclass(frozen=True, slots=True)
class AllocatedDevice:
    """A device that was given to a container (`allocatedResourcesStatus`, KEP-4680)."""

    resource: str
    id: str
    """As the device plugin names it."""
    unhealthy: bool


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container. Times: seconds since the epoch, by the kubelet's clock."""

    name: str = ""
    id: str = ""
    """Of the process that runs or ran last; "" before the first."""
    running: bool = False
    running_since: float | None = None
    started: bool = False
    """It passed its startup probe."""
    restarts: int = 0
    waiting: str = ""
    """Why it waits (one word of the kubelet's); "" where it does not, or it is not reported."""
    waiting_message: str = ""
    ended: float | None = None
    """When its process ended; None while it runs, waits or was never started."""
    exit_code: int | None = None
    """Of the process before; None where there was none."""
    last_words: str = ""
    """Termination message of the process that ended last; "" where that went well."""
    devices: tuple[AllocatedDevice, ...] = ()


def container_view(status: JsonMap) -> ContainerView:
    """Read one entry of `containerStatuses`.

    Raises:
        ObjectError: a part of it is no object or list.
    """
    state, last = part(status, "state"), part(part(status, "lastState"), "terminated")
    running, waiting = part(state, "running"), part(state, "waiting")
    runs = state.get("running") is not None
    return ContainerView(
        name=text(status, "name"),
        id=text(status, "containerID"),
        running=runs,
        running_since=timestamp(running.get("startedAt")),
        started=status.get("started") is True,
        restarts=whole(status, "restartCount") or 0,
        waiting=text(waiting, "reason"),
        waiting_message=text(waiting, "message"),
        ended=timestamp(part(state, "terminated").get("finishedAt")),
        exit_code=whole(last, "exitCode"),
        last_words=_last_words(part(state, "terminated"), last),
        devices=tuple(
            AllocatedDevice(
                text(resource, "name"),
                text(entry, "resourceID"),
                entry.get("health") == "Unhealthy",
            )
            for resource in parts(status, "allocatedResourcesStatus")
            for entry in parts(resource, "resources")
        ),
    )


def _last_words(now: JsonMap, before: JsonMap) -> str:
    """Of the states of a process that ended: the present one and the one before it."""
    ended = now or before
    return text(ended, "message") if whole(ended, "exitCode") else ""


def has_run(status: JsonMap) -> bool:
    """Whether a process of the container was started once; one that a kubelet rejects has none.

    Raises:
        ObjectError: a state is no object.
    """
    states = (part(status, key) for key in ("state", "lastState"))
    return any("running" in state or "terminated" in state for state in states)
