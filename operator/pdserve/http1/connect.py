"""Makes connections to instances, each within its time."""

from __future__ import annotations

import asyncio

from pdserve.http1.callbacks import as_protocol
from pdserve.http1.client import Exchange
from pdserve.http1.listener import UpstreamError
from pdserve.http1.stalls import within
from pdserve.http1.sweeper import Sweeper


async def connected(
    host: str, port: int, seconds: float, sweeper: Sweeper | None = None
) -> Exchange:
    """A new connection, made within `seconds`; `sweeper`: see `Exchange`.

    Raises:
        UpstreamError: there is none; its kind is `connect`.
    """
    loop, exchange = asyncio.get_running_loop(), Exchange(sweeper)
    try:
        async with within(seconds):
            await loop.create_connection(lambda: as_protocol(exchange), host, port)
    except TimeoutError as late:
        message = f"{host}:{port}: no connection within {seconds:g} s"
        raise UpstreamError("connect", message) from late
    except OSError as error:
        raise UpstreamError("connect", f"{host}:{port}: {error}") from error
    return exchange
