"""Which devices of a node each container holds: what a device plugin and the kubelet do. Pure."""

from __future__ import annotations

from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap

_VISIBLE = {
    "huawei.com/": "ASCEND_VISIBLE_DEVICES",
    "nvidia.com/": "NVIDIA_VISIBLE_DEVICES",
}


class NoDevices(Exception):  # noqa: N818 - it is an answer, not a fault
    """Too few healthy devices are free; the message is the kubelet's."""


class Devices:
    """The devices of one node, all of one extended `resource`."""

    def __init__(self, resource: str, count: int) -> None:
        self.resource = resource
        self.count = count
        self.unhealthy: set[int] = set()
        self._held: dict[str, set[int]] = {}

    @property
    def healthy(self) -> int:
        """How many devices may be given to pods, those in use included."""
        return self.count - len(self.unhealthy)

    def take(self, pod: Object) -> dict[str, list[int]]:
        """Device ids per container of `pod`, lowest free first; the same again if asked again.

        Raises:
            NoDevices: not enough; nothing is then held.
        """
        uid = pod["metadata"]["uid"]
        self.give_back(uid)
        taken = set().union(*self._held.values()) if self._held else set()
        free = [i for i in range(self.count) if i not in taken and i not in self.unhealthy]
        given: dict[str, list[int]] = {}
        for container in pod["spec"]["containers"]:
            wanted = self._wanted(container)
            if wanted > len(free):
                raise NoDevices(
                    "Pod was rejected: Allocate failed due to requested number of devices "
                    f"unavailable for {self.resource}. Requested: {wanted}, Available: "
                    f"{len(free)}, which is unexpected"
                )
            given[container["name"]], free = free[:wanted], free[wanted:]
        self._held[uid] = {i for ids in given.values() for i in ids}
        return given

    def give_back(self, uid: str) -> None:
        """Free the devices of the pod with this uid; nothing happens where it had none."""
        self._held.pop(uid, None)

    def env(self, ids: list[int]) -> dict[str, str]:
        """Variables by which a container's runtime sees only its devices, given their numbers."""
        for prefix, variable in _VISIBLE.items():
            if ids and self.resource.startswith(prefix):
                return {variable: ",".join(map(str, ids))}
        return {}

    def _wanted(self, container: JsonMap) -> int:
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        return int(limits.get(self.resource) or requests.get(self.resource) or 0)
