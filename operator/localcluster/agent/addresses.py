"""Loopback addresses: every node, device and pod of every local cluster has one of its own.

127.C.N.x: C is the cluster's number on this machine, N the node's; x = 1 is the node itself, 2-17
are its devices, 32-254 its pods. A cluster reserves its number by binding an abstract socket. Such
a socket belongs to one network namespace, as loopback does, and ends with the process.
"""

from __future__ import annotations

import socket
from collections import deque

from localcluster.errors import LocalError

FIRST_DEVICE = 2
FIRST_POD, LAST_POD = 32, 254
_CLUSTERS = range(77, 255)


class ClusterNumber:
    """Second byte of all addresses of one cluster (77 to 254), reserved until `release`.

    Raises:
        LocalError: all numbers are taken.
    """

    def __init__(self) -> None:
        for number in _CLUSTERS:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                lock.bind(f"\0pdserve-local-127.{number}")
            except OSError:
                lock.close()
                continue
            self.number = number
            self._lock = lock
            return
        raise LocalError(f"{len(_CLUSTERS)} local clusters run on this machine; end one first")

    def release(self) -> None:
        """Give the number back."""
        self._lock.close()


class NodeAddresses:
    """Addresses of one node. Freed pod addresses are used again last."""

    def __init__(self, cluster: int, node: int) -> None:
        self._prefix = f"127.{cluster}.{node}"
        self._free = deque(range(FIRST_POD, LAST_POD + 1))

    @property
    def node(self) -> str:
        """InternalIP of the node."""
        return f"{self._prefix}.1"

    def device(self, index: int) -> str:
        """Stand-in for the RoCE address of device `index`, from 0."""
        return f"{self._prefix}.{FIRST_DEVICE + index}"

    def take(self) -> str | None:
        """An unused pod address, or None when all are taken."""
        return f"{self._prefix}.{self._free.popleft()}" if self._free else None

    def give_back(self, address: str) -> None:
        """Free the address of a pod that is gone."""
        self._free.append(int(address.rpartition(".")[2]))

    @property
    def pods(self) -> int:
        """How many pods a node can address."""
        return LAST_POD - FIRST_POD + 1
