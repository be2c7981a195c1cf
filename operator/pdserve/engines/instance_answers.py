"""What an instance answers in pdserve's contract: slot hints, refusals, and what it says of tables.

Shared by the programs that stand at an instance's port: the reference engine, and the proxy before
an engine of another project. `pull_flow` is the gateway's side.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.http1.errors import ApiError, Headers
from pdserve.wire import calls
from pdserve.wire.peers import Peer, PeerTable

_SLOTS, _FREE_IN_MS, _EPOCH = (
    name.encode() for name in (calls.HEADER_SLOTS, calls.HEADER_FREE_IN_MS, calls.HEADER_EPOCH)
)
_REJECT = calls.HEADER_REJECT.encode()


@dataclass(frozen=True, slots=True)
class SlotHint:
    """One statement about free slots."""

    free: int
    total: int
    free_in_ms: int
    epoch: int

    def headers(self) -> Headers:
        """The headers every reply of a leg carries."""
        return (
            (_SLOTS, b"%d/%d" % (self.free, self.total)),
            (_FREE_IN_MS, b"%d" % self.free_in_ms),
            (_EPOCH, b"%d" % self.epoch),
        )


class RejectedError(ApiError):
    """No room, or not now: 503 (502 for a failed KV pull), with the reason for the gateway."""

    def __init__(self, reason: str, message: str, status: int = 503) -> None:
        headers = ((_REJECT, reason.encode()), (b"retry-after", b"0"))
        super().__init__(status, message, code=reason, kind="rejected", headers=headers)


class StaleTableError(ApiError):
    """409: the sender's table is older than (or differs at the version of) this instance's."""

    def __init__(self, current: int, given: int) -> None:
        super().__init__(409, f"peer table {given} is older than {current}", code="stale_table")
        self.current = current


def check_age(table: PeerTable, current: PeerTable | None) -> None:
    """Check that a table may follow `current`.

    Raises:
        StaleTableError: the table is older, or differs at this version.
    """
    if current is not None and table.version <= current.version and table != current:
        raise StaleTableError(current.version, table.version)


def checked_entry(table: PeerTable, current: PeerTable | None, instance: str, role: str) -> Peer:
    """An instance's own entry in a table that it may take over after `current`.

    Raises:
        StaleTableError: the table is older, or differs at this version.
        ApiError: 422, the table does not name `instance` in its `role`.
    """
    check_age(table, current)
    me = table.peer(instance)
    if me is None:
        raise ApiError(
            422, f"peer table {table.version} does not name {instance!r}", code="not_named"
        )
    if me.role != role:
        raise ApiError(
            422,
            f"peer table {table.version} calls {instance!r} {me.role}, it is {role}",
            code="wrong_role",
        )
    return me
