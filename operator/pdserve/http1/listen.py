"""Where a server listens: one wildcard that answers IPv4 and IPv6 alike.

asyncio makes `::` an IPv6-only socket, so a pod of a dual-stack cluster would need two addresses
and one of an IPv6-only cluster another than one of an IPv4-only cluster. Here `::` means every
address of the machine, whatever families it has.
"""

from __future__ import annotations

import socket
from typing import Final

from pdserve.terms.json import JsonObject

EVERYWHERE: Final = "::"


def listening(host: str, port: int) -> JsonObject:
    """Arguments of `create_server` for an address; `::` answers both families.

    Raises:
        OSError: the port is taken, or the machine has neither family.
    """
    if host != EVERYWHERE:
        return {"host": host, "port": port}
    try:
        return {"sock": _bound(socket.AF_INET6, EVERYWHERE, port)}
    except OSError:
        # No IPv6 on this machine. A port that is taken is taken in this family too.
        return {"sock": _bound(socket.AF_INET, "0.0.0.0", port)}  # noqa: S104 - asked for


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
