"""Client of a running node agent: asks for its state, or makes it break something.

The requests are those of `agent.faults`.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from localcluster.agent.faults import SOCKET
from localcluster.errors import LocalError
from pdserve.terms.json import JsonObject

_TIMEOUT_SECONDS = 10.0


class Admin:
    """Client of the admin socket in one state directory. All methods raise LocalError."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def status(self) -> JsonObject:
        """Nodes, pods with their process ids, and processes of the control plane."""
        result: JsonObject = self._ask("status")
        return result

    def kill(self, namespace: str, pod: str, container: str = "") -> None:
        """Kill a container's main process (the first running container by default)."""
        self._ask("kill", namespace=namespace, pod=pod, container=container)

    def freeze(self, namespace: str, pod: str, container: str = "") -> None:
        """Stop a container's processes where they stand; connections stay open, silent."""
        self._ask("freeze", namespace=namespace, pod=pod, container=container, frozen=True)

    def unfreeze(self, namespace: str, pod: str, container: str = "") -> None:
        """Let a frozen container continue."""
        self._ask("freeze", namespace=namespace, pod=pod, container=container, frozen=False)

    def cut(self, node: str) -> None:
        """Cut a node off from the API server: no heartbeat, no status; its pods run on."""
        self._ask("cut", node=node, cut=True)

    def restore(self, node: str) -> None:
        """Undo `cut`."""
        self._ask("cut", node=node, cut=False)

    def stop(self, node: str) -> None:
        """A node goes down as if its power failed: cut off, and its containers are gone."""
        self._ask("stop", node=node)

    def start(self, node: str) -> None:
        """Undo `stop`: containers start again as their policy says, at new addresses."""
        self._ask("start", node=node)

    def device(self, node: str, device: int, *, healthy: bool) -> None:
        """Mark device number `device` of a node unhealthy, or healthy again."""
        self._ask("device", node=node, device=device, unhealthy=not healthy)

    def _ask(self, name: str, **arguments: Any) -> Any:
        request = json.dumps({"do": name, **arguments}).encode() + b"\n"
        try:
            answer = json.loads(exchange(self._state_dir, request))
        except (OSError, ValueError) as error:
            raise LocalError(f"no node agent answers in {self._state_dir}: {error}") from error
        if not answer["ok"]:
            raise LocalError(str(answer["error"]))
        return answer["result"]


def exchange(state_dir: Path, request: bytes) -> bytes:
    """The line that the node agent of a state directory answers to a line, at its admin socket.

    Raises:
        OSError: no agent listens there, or it does not answer within 10 s.
    """
    # By way of the directory's descriptor: a socket's path may have at most 107 bytes.
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.connect(f"/proc/self/fd/{directory}/{SOCKET}")
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                return answer.readline()
    finally:
        os.close(directory)
