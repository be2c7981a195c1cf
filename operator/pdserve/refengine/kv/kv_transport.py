"""The interface of a KV transport, whatever moves the bytes.

`tcp` implements it without dependencies; an RDMA transport would implement the same protocol. A
pull either fills every landing buffer with checked bytes or raises. After an error the caller
frees the blocks: partial KV is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pdserve.engines.trust import Proof
    from pdserve.refengine.kv.payload import Payload

HANDSHAKE_SECONDS = 3.0


class TransportError(Exception):
    """A link or a pull failed; the message is what an operator should read."""


class PathError(TransportError):
    """No connection could be made, or it broke: another address of the peer may do."""


class CorruptKvError(PathError):
    """What arrived is not the KV that was asked for; it must not be used."""


class PullTimeoutError(TransportError):
    """A pull did not end in its time."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Whom to reach: the peer's id (verified in the handshake) and where it listens.

    `device`: the address is that of one of the peer's devices, not its pod's. `source`: the
    address of this instance that a connection starts from; empty: the system chooses.
    """

    id: str
    host: str
    port: int
    device: bool = False
    source: str = ""

    @staticmethod
    def parse(peer: str, transfer: str) -> PeerAddress:
        """From a peer table's `host:port`.

        Raises:
            TransportError: it is no such text, or the port is out of range.
        """
        host, _, port = transfer.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise TransportError(f"transfer address {transfer!r} of {peer} is not host:port")
        return PeerAddress(peer, host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class WantedKv:
    """What a pull asks for: the KV of the `tokens` prompt tokens of a request.

    `generation` tells it from earlier KV under the same name; 0 where the prefill, of an older
    version, did not say.
    """

    request: str
    tokens: int
    generation: int = 0


class Keyring(Protocol):
    """The keys of handshakes, as the transport sees them; they may change at any time."""

    def proof_to(self, peer: str) -> Proof | None:
        """How to prove this instance to a peer; None where no key is known."""

    def proofs_from(self, peer: str) -> tuple[Proof, ...]:
        """What a connecting peer may prove; empty for one that nothing is known of."""

    def pair_refused(self, peer: str) -> None:
        """A handshake with `peer` failed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is in handshakes; only equal `model` fingerprints may exchange KV."""

    id: str
    keys: Keyring
    model: str
    numerics: str


class Exporter(Protocol):
    """The sending side, as the transport sees it."""

    def admits(self, peer: str) -> str | None:
        """None when `peer` may link and pull, else why not."""

    def export(self, request_id: str, peer: str) -> Payload | None:
        """The KV kept for a request (the pull begins now), or None when there is none."""

    def pulled(self, request_id: str, peer: str) -> None:
        """The receiver has all of it, checked: the lease is over."""

    def pull_failed(self, request_id: str, peer: str) -> None:
        """The transfer broke; the KV stays until its lease ends."""


class Link(Protocol):
    """A verified connection to a peer that is kept to notice its loss."""

    numerics: str
    """The peer's numerics digest; unequal to ours: other CPU type, no exact mode between us."""

    async def lost(self) -> str:
        """Wait until the link is broken; returns why."""

    def close(self) -> None:
        """Give it up."""


class KvSource(Protocol):
    """Where a decode gets KV from, whatever way it takes."""

    async def pull(self, peer: str, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        """Fill `landing` with a request's KV held by `peer`; returns bytes.

        Raises:
            CorruptKvError: what arrived is not the KV that was asked for.
            TransportError: no KV; what `landing` holds must not be used.
        """


class KvTransport(Protocol):
    """Move KV between instances."""

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (0 asks for a free one)."""

    async def verify(self, peer: PeerAddress) -> tuple[str, ...]:
        """Connect and verify both sides, keep the connection for pulls.

        Returns the addresses of its devices at which the peer says that it listens.

        Raises:
            TransportError: the peer cannot be reached, or is not the one that was named.
        """

    async def link(self, peer: PeerAddress) -> Link:
        """Connect and verify both sides.

        Raises:
            TransportError: the peer does not answer or refuses; the message says why.
        """

    async def pull(self, peer: PeerAddress, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        """Fill `landing` with a request's KV; returns bytes.

        Raises:
            CorruptKvError: what arrived is not the KV that was asked for.
            TransportError: the connection was lost, or the peer refuses.
        """

    async def stop(self) -> None:
        """Close everything."""
