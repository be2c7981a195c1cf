"""How the operator talks to an instance of one engine type: peer tables, links, drain.

The operator decides when (`groups`), and its linker sends; a control face says which request that
is and what the answer means. Every request carries the service's control credential as a bearer
token. An engine without such paths gets them from a proxy container in its pod
(`PodParts.containers`). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pdserve.terms.json import JsonMap
from pdserve.wire import calls
from pdserve.wire.bounds import parse_json
from pdserve.wire.links import DrainReport, LinkReport


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A request to an instance; `body` is a JSON value, None without one."""

    method: str
    path: str
    body: JsonMap | None = None
    accepts: frozenset[int] = frozenset({200, 202})
    """Statuses that are no error."""


@runtime_checkable
class EngineControl(Protocol):
    """Control paths of one engine type."""

    def put_peers(self, table: JsonMap) -> ControlRequest:
        """Gives a peer table in its wire form (`wire.peers`), with a grant under `credentials`.

        An instance that holds a newer table keeps it, and its link report says so.
        """

    def get_links(self) -> ControlRequest:
        """Asks for a link report."""

    def read_links(self, answer: bytes) -> LinkReport:
        """The link report in an answer's body.

        Raises:
            WireError: it is none.
        """

    def post_drain(self) -> ControlRequest:
        """Starts a drain, or asks how far it is: an instance that drains takes no new request."""

    def read_drain(self, answer: bytes) -> DrainReport:
        """What still runs there, by an answer's body.

        Raises:
            WireError: it is no drain report.
        """


@dataclass(frozen=True, slots=True)
class JsonControl:
    """`EngineControl` in pdserve's own JSON, under any paths."""

    peers: str = calls.PATH_PEERS
    links: str = calls.PATH_LINKS
    drain: str = calls.PATH_DRAIN

    def put_peers(self, table: JsonMap) -> ControlRequest:
        """409 says that it holds a newer one."""
        return ControlRequest("PUT", self.peers, table, frozenset({200, 202, 409}))

    def get_links(self) -> ControlRequest:
        """See EngineControl."""
        return ControlRequest("GET", self.links)

    def read_links(self, answer: bytes) -> LinkReport:
        """See EngineControl."""
        return LinkReport.from_json(parse_json(answer))

    def post_drain(self) -> ControlRequest:
        """See EngineControl."""
        return ControlRequest("POST", self.drain)

    def read_drain(self, answer: bytes) -> DrainReport:
        """See EngineControl."""
        return DrainReport.from_json(parse_json(answer))
