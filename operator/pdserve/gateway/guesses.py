"""Slows down guessing of API keys, by client address, in bounded memory.

An address has a number of wrong keys that comes back with time. When it is used up, only keys that
were accepted from this address before are looked at; for others the answer is 429. So an address
gets so many guesses a second, and clients behind it that have been accepted go on.
Clock as an argument; no I/O. Neighbour: `auth` knows the keys.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field

BURST = 20.0
PER_SECOND = 1.0
MAX_ADDRESSES = 4096
MAX_KNOWN = 64
"""Accepted keys that are remembered per address."""


@dataclass(slots=True)
class _Address:
    left: float
    at: float
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class Guesses:
    """Wrong keys by address; the address unused for longest is forgotten first."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._addresses)

    def wait(self, address: str, digest: bytes, now: float) -> float:
        """Seconds until a key of this address is looked at; 0: now, as for keys accepted before.

        `digest`: that of the key; `now` in monotonic seconds.
        """
        found = self._addresses.get(_network(address))
        if found is None or digest in found.known:
            return 0.0
        self._earn(found, now)
        return 0.0 if found.left >= 1.0 else (1.0 - found.left) / PER_SECOND

    def wrong(self, address: str, now: float) -> None:
        """Count a wrong key of this address at `now` (monotonic seconds)."""
        found = self._of(address, now)
        self._earn(found, now)
        found.left = max(0.0, found.left - 1.0)

    def right(self, address: str, digest: bytes, now: float) -> None:
        """Note that a key of this address was accepted at `now` (monotonic seconds).

        Wrong keys of the address do not hold it up any more; MAX_KNOWN such keys are kept.
        """
        known = self._of(address, now).known
        known[digest] = None
        known.move_to_end(digest)
        if len(known) > MAX_KNOWN:
            known.popitem(last=False)

    def _of(self, address: str, now: float) -> _Address:
        network = _network(address)
        found = self._addresses.get(network)
        if found is None:
            found = self._addresses[network] = _Address(BURST, now)
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(network)
        return found

    def _earn(self, found: _Address, now: float) -> None:
        found.left = min(BURST, found.left + max(0.0, now - found.at) * PER_SECOND)
        found.at = now


def _network(address: str) -> str:
    """An IPv6 client has a whole /64 to itself; one IPv4 address is one client."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
