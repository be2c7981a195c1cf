"""Listens for KV at the addresses of this instance's devices, beside the pod's address.

The addresses come with the peer table. A pod has the addresses of its own networks, and with host
network those of its node; any other address cannot be bound. Such an address is reported and
retried now and then, and peers are not sent there. Where the pod's listener already accepts on
every address, an address needs no socket of its own: it only has to be one of this machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Mapping

from pdserve.terms.json import JsonObject

RETRY_SECONDS = 30.0
BACKLOG = 100

log = logging.getLogger(__name__)


class DeviceListeners:
    """Sockets by address; changed on the event loop."""

    def __init__(self, accept: Callable[[], asyncio.BaseProtocol]) -> None:
        """`accept` makes the protocol of a connection."""
        self._accept = accept
        self._wanted: tuple[str, ...] = ()
        self._sockets: dict[str, socket.socket | None] = {}
        self._serving: dict[str, asyncio.Task[asyncio.Server]] = {}
        self._retry: asyncio.TimerHandle | None = None
        self.missing: Mapping[str, str] = {}
        """Addresses that cannot be listened at, and why."""
        self.beside = ("", 0)
        """Host and port of the pod's own listener."""
        self.changed: Callable[[int, int], None] = lambda listening, missing: None
        """Called with how many addresses are listened at, and how many cannot be."""

    @property
    def listening(self) -> tuple[str, ...]:
        """Addresses at which peers may connect, in the order of the devices."""
        return tuple(a for a in self._wanted if a in self._sockets)

    def report(self) -> JsonObject:
        """What `/pdserve/v1/info` says."""
        return {"listening": list(self.listening), "missing": dict(self.missing)}

    def listen(self, addresses: Iterable[str]) -> None:
        """Listen at these, literal and in one spelling, and at no others."""
        self._wanted = tuple(a for a in addresses if a)
        for address in [a for a in self._sockets if a not in self._wanted]:
            self._close(address)
        self._try()

    def stop(self) -> None:
        """Close every listener; connections go on."""
        self._wanted = ()
        if self._retry is not None:
            self._retry.cancel()
        for address in list(self._sockets):
            self._close(address)

    def _try(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        missing: dict[str, str] = {}
        for address in self._wanted:
            if address in self._sockets:
                continue
            try:
                self._sockets[address] = self._opened(address)
            except OSError as error:
                missing[address] = error.strerror or str(error)
        if missing and missing != self.missing:
            told = ", ".join(f"{address} ({why})" for address, why in missing.items())
            log.info("KV does not go to addresses that this pod cannot listen at: %s", told)
        self.missing = missing
        self.changed(len(self.listening), len(missing))
        if missing:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_SECONDS, self._try)

    def _opened(self, address: str) -> socket.socket | None:
        """A listening socket, or None where the pod's own listener answers there.

        Raises:
            OSError: the address is not this machine's, or the port is taken there.
        """
        host, port = self.beside
        covered = _covers(host, address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, 0 if covered else port))
            if covered:
                made.close()
                return None
            made.setblocking(False)
            # Now, and not when the loop comes to it: peers may connect once the table is in force.
            made.listen(BACKLOG)
        except OSError:
            made.close()
            raise
        loop = asyncio.get_running_loop()
        self._serving[address] = loop.create_task(loop.create_server(self._accept, sock=made))
        return made

    def _close(self, address: str) -> None:
        opened = self._sockets.pop(address)
        serving = self._serving.pop(address, None)
        if serving is None or opened is None:
            return
        if serving.done() and not serving.cancelled() and serving.exception() is None:
            serving.result().close()
        else:
            serving.cancel()
            opened.close()


def _covers(host: str, address: str) -> bool:
    """Whether a listener at `host` answers connections to `address`."""
    try:
        bound = ipaddress.ip_address(host)
    except ValueError:
        return False
    if not bound.is_unspecified:
        return str(bound) == address
    return bound.version == 6 or ":" not in address
