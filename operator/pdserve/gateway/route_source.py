"""Where the route table comes from: a file, or the ConfigMap that the operator writes.

Each source calls back with every new table and never with a broken or an older one: the last good
table stays in use while the source is away or wrong, and the log says so once per cause. The
Kubernetes client is loaded only for `configmap:`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.names import KEY_ROUTES
from pdserve.wire.routes import RouteTable

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.25


class RouteSource(Protocol):
    """Follows a route table until cancelled."""

    async def run(self, apply: Callable[[RouteTable], None]) -> None:
        """Call `apply` with each new table."""
        ...


class TableGate:
    """Parses documents and lets only good, newer tables through."""

    def __init__(self, apply: Callable[[RouteTable], None], origin: str) -> None:
        self._apply = apply
        self._origin = origin
        self._identity = ""
        self._version = -1
        self._complaint = ""

    def offer(self, document: str | bytes, identity: str) -> None:
        """A document seen at the source; a new `identity` (object uid) restarts versions."""
        try:
            table = RouteTable.from_json(parse_json(document))
        except WireError as error:
            self.complain(f"keeping the last good route table: {error}")
            return
        if identity == self._identity and table.version < self._version:
            self.complain(f"ignoring version {table.version}: {self._version} is in use")
            return
        self._identity, self._version, self._complaint = identity, table.version, ""
        self._apply(table)

    def complain(self, message: str) -> None:
        """Log a cause once, not at every look."""
        if message != self._complaint:
            self._complaint = message
            logger.warning("%s: %s", self._origin, message)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A route table in a file, read again when the file changes."""

    path: Path

    async def run(self, apply: Callable[[RouteTable], None]) -> None:
        """See `RouteSource.run`."""
        gate = TableGate(apply, str(self.path))
        seen: tuple[int, int, int] | None = None
        while True:
            try:
                stat = self.path.stat()
                now = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if now != seen:
                    gate.offer(self.path.read_bytes(), str(self.path))
                    seen = now
            except OSError as error:
                gate.complain(f"cannot be read: {error}")
            await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class ConfigMapSource:
    """The ConfigMap `wire.names.routes_configmap_name` of a PDService, watched."""

    namespace: str
    name: str

    async def run(self, apply: Callable[[RouteTable], None]) -> None:
        """See `RouteSource.run`."""
        # Loading the Kubernetes client costs time and memory that a file source need not pay.
        from pdserve.kube.cache import Cache
        from pdserve.kube.connect import connect
        from pdserve.kube.resource import CONFIGMAPS, Object

        gate = TableGate(apply, f"configmap {self.namespace}/{self.name}")

        def changed(event: str, old: Object | None, new: Object | None) -> None:
            if new is None:
                gate.complain("deleted; keeping the last good route table")
            elif (document := (new.get("data") or {}).get(KEY_ROUTES)) is None:
                gate.complain(f"has no key {KEY_ROUTES}; keeping the last good route table")
            else:
                gate.offer(document, new["metadata"]["uid"])

        client = await connect()
        try:
            cache = Cache(
                client,
                CONFIGMAPS,
                namespace=self.namespace,
                field_selector=f"metadata.name={self.name}",
            )
            cache.on_change(changed)
            await cache.run()
        finally:
            await client.close()


def parse_source(text: str) -> RouteSource:
    """The source that `file:PATH` or `configmap:NAMESPACE/NAME` names.

    Raises:
        ValueError: it is neither; the message says what would be right.
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        return FileSource(Path(rest))
    namespace, _, name = rest.partition("/")
    if kind == "configmap" and namespace and name and "/" not in name:
        return ConfigMapSource(namespace, name)
    raise ValueError(f"--routes {text!r}: must be file:PATH or configmap:NAMESPACE/NAME")
