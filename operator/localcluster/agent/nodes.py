"""One process node: its Node object, its heartbeats, and what `faults` can do to it."""

from __future__ import annotations

import asyncio
import json
import os
import platform

from localcluster.agent.addresses import NodeAddresses
from localcluster.agent.devices import Devices
from localcluster.agent.host import AgentSettings, log_event, micro_timestamp, timestamp
from localcluster.config import NodeSpec
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import LEASES, NODES, Object
from pdserve.terms.json import JsonMap
from pdserve.wire.names import ANNOTATION_ROCE_DEVICES, ANNOTATION_UNHEALTHY_DEVICES

LEASE_NAMESPACE = "kube-node-lease"
_LEASE_SECONDS = 40
_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID"),
    ("Ready", "True", "KubeletReady"),
)


class ProcessNode:
    """A node of the cluster, played by this process."""

    def __init__(
        self, spec: NodeSpec, resource: str, addresses: NodeAddresses, kubelet_port: int
    ) -> None:
        self.spec = spec
        self.addresses = addresses
        self.devices = Devices(resource, spec.devices)
        self.connected = asyncio.Event()
        self.connected.set()
        self.stopped = False
        self._kubelet_port = kubelet_port
        self._uid = ""

    @property
    def name(self) -> str:
        """Name of the Node object."""
        return self.spec.name

    @property
    def ip(self) -> str:
        """InternalIP."""
        return self.addresses.node

    @property
    def allocatable(self) -> dict[str, str]:
        """What pods may use."""
        return self._capacity(self.devices.healthy)

    async def register(self, client: KubeClient) -> None:
        """Create the Node (or take over the one of that name) and report it ready."""
        try:
            node = await client.create(NODES, self._object())
        except KubeError as error:
            if not error.is_already_exists:
                raise
            node = await client.get(NODES, self.name)
        self._uid = node["metadata"]["uid"]
        await self.renew_lease(client)
        await self.report(client)

    async def heartbeats(self, client: KubeClient, settings: AgentSettings) -> None:
        """Renew the Lease for ever; report the node's status when it is not what it should be."""
        while True:
            await asyncio.sleep(settings.lease_period)
            if not self.connected.is_set():
                continue
            try:
                await self.renew_lease(client)
                node = await client.get(NODES, self.name)
                if not _is_ready(node):
                    await self.report(client)
            except KubeError as error:
                log_event("heartbeat failed", node=self.name, error=str(error))

    async def renew_lease(self, client: KubeClient) -> None:
        """One heartbeat."""
        renew = [{"op": "replace", "path": "/spec/renewTime", "value": micro_timestamp()}]
        try:
            await client.patch_json(LEASES, self.name, renew, namespace=LEASE_NAMESPACE)
        except KubeError as error:
            if not error.is_not_found:
                raise
            await client.create(LEASES, self._lease())

    async def report(self, client: KubeClient) -> None:
        """Send the whole node status."""
        await client.patch_status(NODES, self.name, self._status(), strategic=True)

    async def set_unhealthy(self, client: KubeClient, device: int, unhealthy: bool) -> None:
        """Mark a device (by its index, from 0) unusable or usable again.

        The node reports it as a device plugin and a fabric agent would.
        """
        marked = set(self.devices.unhealthy)
        (marked.add if unhealthy else marked.discard)(device)
        if marked == self.devices.unhealthy:
            return
        self.devices.unhealthy = marked
        operation = {
            "op": "add" if marked else "remove",
            "path": "/metadata/annotations/" + ANNOTATION_UNHEALTHY_DEVICES.replace("/", "~1"),
        }
        if marked:
            operation["value"] = ",".join(map(str, sorted(marked)))
        await client.patch_json(NODES, self.name, [operation])
        await self.report(client)

    def _object(self) -> Object:
        devices = [{"id": i, "ip": self.addresses.device(i)} for i in range(self.devices.count)]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": _ARCH.get(platform.machine(), platform.machine()),
                    **self.spec.labels,
                },
                "annotations": {ANNOTATION_ROCE_DEVICES: json.dumps(devices)},
            },
            "spec": {"providerID": f"process://{platform.node()}/{self.name}"},
        }

    def _lease(self) -> Object:
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self._uid}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": LEASE_NAMESPACE,
                "ownerReferences": [owner],
            },
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": _LEASE_SECONDS,
                "renewTime": micro_timestamp(),
            },
        }

    def _capacity(self, devices: int) -> dict[str, str]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            # All nodes share one machine, so what a node offers is what the machine has.
            "cpu": str(max(8, os.cpu_count() or 1)),
            "memory": f"{memory // 1024}Ki",
            "ephemeral-storage": "100Gi",
            "pods": str(self.addresses.pods),
            self.devices.resource: str(devices),
        }

    def _status(self) -> JsonMap:
        now = timestamp()
        return {
            "capacity": self._capacity(self.devices.count),
            "allocatable": self.allocatable,
            "addresses": [
                {"type": "InternalIP", "address": self.ip},
                {"type": "Hostname", "address": self.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._kubelet_port}},
            "nodeInfo": {
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "architecture": _ARCH.get(platform.machine(), platform.machine()),
                "operatingSystem": "linux",
                "kernelVersion": platform.release(),
                "osImage": "process node",
                "containerRuntimeVersion": "process://1",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
            },
            "conditions": [
                {
                    "type": kind,
                    "status": status,
                    "reason": reason,
                    "message": "",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
                for kind, status, reason in _CONDITIONS
            ],
        }


_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
