"""What clients may cost a server: bounds on one connection, and the memory of all bodies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds on one client connection; sizes in bytes, times in seconds."""

    body: int = 4 << 20
    head: int = 32 << 10
    receive: float = 30.0
    """From the first byte of a request to its last."""
    idle: float = 75.0
    """Between requests on a kept connection."""
    write_stall: float = 60.0
    """A client that reads nothing for this long is cut."""
    tells_late: bool = False
    """A request that is not complete in time gets 408; else its connection is cut."""
    pipelined: int = 16
    """Complete requests of one connection that wait for the answer to the one before them."""
    waiting: int = 1 << 30
    """Bytes of their bodies."""
    memory: int = 128 << 20
    """Bytes of all bodies that are received or served, as they are kept in memory."""
    small: int = 16 << 10
    """Bodies up to this size are taken however full the memory is."""
    sweep: float = 1.0


class BodyMemory:
    """Bytes that bodies take in this process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int, *, small: bool, arriving: bool) -> bool:
        """Count `size` bytes if there is room, or if they are part of a small body.

        Bodies that are `arriving` fill no more than half: what is complete can be served.
        """
        if not small and self.used + size > (self.limit // 2 if arriving else self.limit):
            return False
        self.used += size
        return True

    def free(self, size: int) -> None:
        """Count `size` bytes as free again, which `take` had counted."""
        self.used -= size
