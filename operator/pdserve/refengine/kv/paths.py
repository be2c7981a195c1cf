"""Which address of a peer KV is pulled from: a device's own where there is one, else the pod's.

A device's address is used after three checks: the peer table names it; the peer says, in a
handshake at its pod's address, that it listens there; a handshake at the address itself succeeded.
So a table with wrong addresses fails no request, and a pull goes to nothing but the named peer.
Checks run beside the pulls, with growing pauses. A pull whose connection to a device breaks is
repeated once at the pod's address. Every pull is counted by the address it used and, if that was
the pod's, by the reason (docs/decisions/027). KV that arrives corrupt is pulled once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pdserve.refengine.kv.device_addresses import same_family
from pdserve.refengine.kv.kv_transport import (
    CorruptKvError,
    KvTransport,
    PathError,
    PeerAddress,
    PullTimeoutError,
    TransportError,
    WantedKv,
)
from pdserve.refengine.kv.listeners import DeviceListeners
from pdserve.refengine.kv.recent_pulls import RecentPulls

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 60.0
"""Seconds between attempts to verify one address."""
PAUSE_AFTER_PULL = 5.0
"""Shortest pause after a pull failed there: a handshake that succeeds says little then."""

NO_ADDRESS: Final = "no_address"
UNUSABLE: Final = "unusable"
UNVERIFIED: Final = "unverified"
NOT_LISTENING: Final = "not_listening"
UNREACHABLE: Final = "unreachable"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeerDevices:
    """What a table says of a peer's devices: usable addresses by position (empty: none there)."""

    addresses: tuple[str, ...] = ()
    named: bool = False
    """Some device has an address, usable or not."""


@dataclass(slots=True)
class _Device:
    address: PeerAddress
    verified: bool = False
    why: str = UNVERIFIED
    pause: float = FIRST_PAUSE
    retry_at: float = 0.0

    def failed(self, why: str, now: float, least: float = 0.0) -> None:
        """Do not use it before a handshake after a pause."""
        self.verified, self.why = False, why
        self.pause = max(self.pause, least)
        self.retry_at = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


@dataclass(slots=True)
class _Peer:
    pod: PeerAddress
    devices: list[_Device]
    named: bool
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = None
    turn: int = 0

    def is_for(self, pod: PeerAddress, devices: list[PeerAddress], named: bool) -> bool:
        """Whether a table that says this says nothing new."""
        known = [d.address for d in self.devices]
        return (self.pod, known, self.named) == (pod, devices, named)

    def next_device(self) -> _Device | None:
        """The verified ones in turn."""
        verified = [d for d in self.devices if d.verified]
        if not verified:
            return None
        self.turn += 1
        return verified[self.turn % len(verified)]

    @property
    def why_pod(self) -> str:
        """Why a pull goes to the pod's address: of several reasons, the one nearest to success."""
        if not self.devices:
            return UNUSABLE if self.named else NO_ADDRESS
        reasons = {d.why for d in self.devices}
        return next((r for r in (UNREACHABLE, NOT_LISTENING) if r in reasons), UNVERIFIED)


class KvPaths:
    """`KvSource` of a decode, and the addresses where this instance listens."""

    def __init__(
        self,
        transport: KvTransport,
        listeners: DeviceListeners,
        pulls: bool,
        counted: Callable[[str, str], None],
        corrupt: Callable[[str], None],
    ) -> None:
        """`counted` gets `device` and an empty reason, or `pod` and why, for each pull.

        `corrupt` gets the peer for each pull whose KV arrived corrupt; `pulls`: whether this
        instance pulls at all.
        """
        self._transport, self._pulls = transport, pulls
        self._counted, self._corrupt = counted, corrupt
        self.listeners = listeners
        self.recent = RecentPulls()
        self._peers: dict[str, _Peer] = {}

    def switch(self, own: Sequence[str], peers: Mapping[PeerAddress, PeerDevices]) -> None:
        """A table is in force.

        Args:
            own: usable addresses of this instance's devices, by position.
            peers: pods' addresses of the peers, and their devices.
        """
        self.listeners.listen(own)
        sources = tuple(a if a in self.listeners.listening else "" for a in own)
        former, self._peers = self._peers, {}
        for pod, told in peers.items():
            addresses = self._addresses(pod, told.addresses, sources) if self._pulls else []
            before = former.pop(pod.id, None)
            if before is not None and before.is_for(pod, addresses, told.named):
                self._peers[pod.id] = before
                continue
            if before is not None:
                _stop(before)
            known = {} if before is None else {d.address: d for d in before.devices}
            devices = [known.get(a) or _Device(a) for a in addresses]
            peer = self._peers[pod.id] = _Peer(pod, devices, told.named)
            if devices:
                peer.keeper = asyncio.create_task(self._keep(peer))
        for peer in former.values():
            _stop(peer)

    async def pull(self, peer: str, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        """Bytes pulled; see `KvSource`.

        Raises:
            TransportError: the peer is not in the table, or neither of its addresses gave the KV.
        """
        known = self._peers.get(peer)
        if known is None:
            raise TransportError(f"{peer!r} is not in this instance's peer table")
        device = known.next_device()
        if device is not None:
            try:
                size = await self._transfer(device.address, wanted, landing)
            except PathError as error:
                self._broke(known, device, error)
            except PullTimeoutError as error:
                self._broke(known, device, error)
                raise
            else:
                device.pause = FIRST_PAUSE
                self._counted("device", "")
                return size
        else:
            try:
                return await self._from_pod(known, wanted, landing)
            except CorruptKvError:
                pass  # counted; once more, over a new connection
        return await self._from_pod(known, wanted, landing)

    async def _from_pod(self, known: _Peer, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        size = await self._transfer(known.pod, wanted, landing)
        self._counted("pod", known.why_pod)
        return size

    async def _transfer(
        self, address: PeerAddress, wanted: WantedKv, landing: Sequence[memoryview]
    ) -> int:
        loop = asyncio.get_running_loop()
        try:
            size = await self._transport.pull(address, wanted, landing)
        except CorruptKvError as error:
            log.warning("%s, pulled at %s", error, address.host)
            self._corrupt(address.id)
            self.recent.count(address.id, True, loop.time())
            raise
        self.recent.count(address.id, False, loop.time())
        return size

    def close(self) -> None:
        """Stop verifying."""
        for peer in self._peers.values():
            _stop(peer)
        self._peers = {}

    @staticmethod
    def _addresses(
        pod: PeerAddress, told: Sequence[str], sources: Sequence[str]
    ) -> list[PeerAddress]:
        """Device i of the peer is reached from device i of this instance (P/D-Serve 3.6)."""
        found = []
        for position, host in enumerate(told):
            source = sources[position % len(sources)] if sources else ""
            if host:
                start = source if source and same_family(source, host) else ""
                found.append(PeerAddress(pod.id, host, pod.port, device=True, source=start))
        return found

    def _broke(self, peer: _Peer, device: _Device, error: TransportError) -> None:
        log.warning("KV pull at %s of %s: %s", device.address.host, peer.pod.id, error)
        now = asyncio.get_running_loop().time()
        device.failed(UNREACHABLE, now, PAUSE_AFTER_PULL)
        peer.changed.set()

    async def _keep(self, peer: _Peer) -> None:
        """Verify what is not, for as long as the table holds."""
        loop = asyncio.get_running_loop()
        while True:
            peer.changed.clear()
            due = [d for d in peer.devices if not d.verified and d.retry_at <= loop.time()]
            if due:
                await self._verify(peer, due)
            retries = [d.retry_at for d in peer.devices if not d.verified]
            try:
                async with asyncio.timeout_at(min(retries, default=None)):
                    await peer.changed.wait()
            except TimeoutError:
                pass

    async def _verify(self, peer: _Peer, due: Sequence[_Device]) -> None:
        loop = asyncio.get_running_loop()
        try:
            offered = frozenset(await self._transport.verify(peer.pod))
        except TransportError:
            # Nothing is known of its devices; `peer_links` tells why the pod does not answer.
            for device in due:
                device.failed(device.why, loop.time())
            return
        for device in due:
            if device.address.host not in offered:
                device.failed(NOT_LISTENING, loop.time())
        asked = [d for d in due if d.address.host in offered]
        await asyncio.gather(*(self._try(peer, device) for device in asked))

    async def _try(self, peer: _Peer, device: _Device) -> None:
        try:
            await self._transport.verify(device.address)
        except TransportError as error:
            if device.why != UNREACHABLE:
                log.warning(
                    "%s listens at %s, which is not reached from %s: %s",
                    peer.pod.id,
                    device.address.host,
                    device.address.source or "here",
                    error,
                )
            device.failed(UNREACHABLE, asyncio.get_running_loop().time())
        else:
            device.verified = True


def _stop(peer: _Peer) -> None:
    if peer.keeper is not None:
        peer.keeper.cancel()
