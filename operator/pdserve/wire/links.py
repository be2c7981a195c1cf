"""Reports an engine gives the operator: links to peers, and progress of a drain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pdserve.wire.bounds import MAX_REPORTED_VERSION, Fields


@dataclass(frozen=True, slots=True)
class LinkReport:
    """Answer of `GET /pdserve/v1/links`.

    `version` is the newest peer table this process was given (0: none yet); `up` the peers whose
    link this process has verified under it; `down` maps the others to the last error.
    """

    version: int
    up: frozenset[str]
    down: dict[str, str]

    @property
    def complete(self) -> bool:
        """True when a table was given and every link it demands is verified."""
        return self.version > 0 and not self.down

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {"version": self.version, "up": sorted(self.up), "down": dict(self.down)}

    @staticmethod
    def from_json(value: Any) -> LinkReport:
        """Parse `to_json`'s value; raises WireError."""
        report = Fields(value, "link report")
        return LinkReport(
            report.integer("version", high=MAX_REPORTED_VERSION),
            frozenset(report.texts("up")),
            report.text_map("down"),
        )


@dataclass(frozen=True, slots=True)
class DrainReport:
    """Answer of `POST /pdserve/v1/drain`: what still runs here.

    `executing` requests in a batch, `holding` KV kept for a peer to pull, `streams` open replies.
    """

    executing: int
    holding: int
    streams: int

    @property
    def idle(self) -> bool:
        """Nothing left: the instance can go."""
        return self.executing == self.holding == self.streams == 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {"executing": self.executing, "holding": self.holding, "streams": self.streams}

    @staticmethod
    def from_json(value: Any) -> DrainReport:
        """Parse `to_json`'s value; raises WireError."""
        report = Fields(value, "drain report")
        return DrainReport(
            report.integer("executing"), report.integer("holding"), report.integer("streams")
        )
