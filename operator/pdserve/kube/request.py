"""One request to the API server before it is bytes, and what carries it.

`client` makes requests; `transport.HttpTransport` and the in-memory API model of the tests carry
them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pdserve.kube.resource import Object, Resource

PatchType = Literal["json", "merge", "strategic", "apply"]


REQUEST_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class KubeRequest:
    """One request before it is bytes. `body` is JSON; `patch` says how a PATCH is to be read."""

    verb: Literal["get", "list", "watch", "create", "update", "patch", "delete"]
    resource: Resource
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    patch: PatchType | None = None
    timeout: float = REQUEST_TIMEOUT


class KubeTransport(Protocol):
    """Carries requests. Both calls raise `KubeError`, never a library's own exceptions."""

    async def send(self, request: KubeRequest) -> Object:
        """The answer's JSON."""
        ...

    def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        """A watch's `{"type", "object"}` documents, until the server ends it."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
