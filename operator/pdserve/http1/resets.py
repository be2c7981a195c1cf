"""Tells whether a client that closed its side had read its last reply.

Its kernel answers our last bytes with a reset when the client had not read them. Where that
matters the connection is kept for a moment to see it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

LOOKS = (0.02, 0.2, 0.5)
"""Seconds between the end of a client's bytes and looks whether it had read its last reply."""
_TCP_CLOSE = 7
"""`tcp_info.tcpi_state` of a connection that the peer has reset (linux/tcp_states.h)."""


class ResetWatch:
    """Watches one connection after a complete reply."""

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], None]) -> None:
        """`unread` is called at most once, when the reply turns out not to have been read."""
        self._transport, self._unread = transport, unread
        self._looks = iter(LOOKS)
        self._told = False

    def tell(self) -> None:
        """The reply was not read."""
        if not self._told:
            self._told = True
            self._unread()

    def look(self) -> None:
        """The client sends no more: look now and a few times later, then close."""
        if self._told or self._transport.is_closing():
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and _was_reset(raw):
            self.tell()
            self._transport.close()
            return
        pause = next(self._looks, None)
        if pause is None:
            self._transport.close()
        else:
            asyncio.get_running_loop().call_later(pause, self.look)


def _was_reset(raw: socket.socket) -> bool:
    try:
        return raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return True
