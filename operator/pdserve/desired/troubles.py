"""What keeps a pod from running, in the words of the component that refuses it. Pure.

The health rules of `groups` decide when an instance is given up, which takes its time; people want
to read the cause at once. Also for gateways, which the operator does not replace. Neighbours:
`pdservice` reads the pods, `service_status` makes the condition Degraded of what is found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.api import ScenarioGroup
from pdserve.terms.json import JsonMap
from pdserve.terms.times import epoch_of
from pdserve.topology import PodView

IMAGE_ERROR: Final = "ImageError"
CONTAINER_CONFIG: Final = "ContainerConfigError"
CRASH_LOOP: Final = "CrashLoop"
UNSCHEDULABLE: Final = "Unschedulable"
DOWNLOAD_FAILED: Final = "ModelDownloadFailed"
GATEWAY_REFUSED: Final = "GatewayRefused"
UNKNOWN_FAULT: Final = "PodFailed"
"""Of a slot whose history does not say."""
SECRET_MISSING: Final = "SecretMissing"  # noqa: S105 - a reason, no secret

_WAITING: Final[Mapping[str, str]] = {
    "ErrImagePull": IMAGE_ERROR,
    "ImagePullBackOff": IMAGE_ERROR,
    "InvalidImageName": IMAGE_ERROR,
    "ErrImageNeverPull": IMAGE_ERROR,
    "ImageInspectError": IMAGE_ERROR,
    "RegistryUnavailable": IMAGE_ERROR,
    "CreateContainerConfigError": CONTAINER_CONFIG,
    "CreateContainerError": CONTAINER_CONFIG,
    "RunContainerError": CONTAINER_CONFIG,
    "CrashLoopBackOff": CRASH_LOOP,
}
"""Reason of a waiting container (kubelet) -> ours."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something that is wanted does not run."""

    reason: str
    message: str


def of_instances(pods: Iterable[PodView]) -> Iterable[Trouble]:
    """Troubles of instances: their containers. Without a node: the group's condition Placed."""
    for pod in _staying(pods):
        yield from _download(pod)
        yield from _container(pod)


def of_gateways(pods: Iterable[PodView], deployment: JsonMap | None) -> Iterable[Trouble]:
    """Troubles of a service's gateways: pods refused, without a node, or not starting."""
    for found in ((deployment or {}).get("status") or {}).get("conditions") or ():
        if found.get("type") == "ReplicaFailure" and found.get("status") == "True":
            message = f"gateway pods are refused: {found.get('message', '')}"
            yield Trouble(GATEWAY_REFUSED, message)
    for pod in _staying(pods):
        yield from _container(pod)
        yield from _scheduling(pod)


def of_group(group: ScenarioGroup) -> Iterable[Trouble]:
    """What was refused of the objects around a group's instances."""
    for found in group.status.conditions:
        if found.type == "Degraded" and found.status == "True":
            yield Trouble(found.reason, f"{group.spec.scenario}: {found.message}")


def of_repairs(group: ScenarioGroup, now: float) -> Iterable[Trouble]:
    """Slots whose next try waits; `now` in seconds since the epoch."""
    for repair in group.status.repairs:
        if repair.not_before_time is not None and epoch_of(repair.not_before_time) > now:
            message = (
                f"{repair.slot} failed {repair.failures} times ({repair.fault}); "
                f"next try at {repair.not_before_time}"
            )
            yield Trouble(repair.fault or UNKNOWN_FAULT, message)


def _staying(pods: Iterable[PodView]) -> Iterable[PodView]:
    return (p for p in pods if not p.deleting)


def _download(pod: PodView) -> Iterable[Trouble]:
    """The last failure of a download that has not succeeded since: the kubelet tries it again."""
    if pod.download.last_words:
        yield Trouble(DOWNLOAD_FAILED, f"pod {pod.name}: {pod.download.last_words}")


def _container(pod: PodView) -> Iterable[Trouble]:
    for container in (*pod.init_containers, *pod.containers):
        reason = _WAITING.get(container.waiting)
        if reason is not None:
            said = ": ".join(filter(None, (container.waiting, container.waiting_message)))
            yield Trouble(reason, f"pod {pod.name}: {said}")


def _scheduling(pod: PodView) -> Iterable[Trouble]:
    refused = pod.scheduled
    if refused.status == "False" and refused.reason == UNSCHEDULABLE:
        yield Trouble(UNSCHEDULABLE, f"pod {pod.name} has no node: {refused.message}")
