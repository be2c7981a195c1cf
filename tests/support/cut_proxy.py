"""A TCP proxy on loopback whose connections can be cut: an API server out of reach."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class CutProxy:
    """Forwards bytes to port `backend` of 127.0.0.1, which may change meanwhile."""

    def __init__(self, backend: int = 0) -> None:
        self.backend = backend
        self._up = True
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Abort every connection, and each one that is opened until `mend`."""
        self._up = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Forward again."""
        self._up = True

    async def close(self) -> None:
        """Cut, and stop listening."""
        self.cut()
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._up:
                raise OSError("cut")
            there, out = await asyncio.open_connection("127.0.0.1", self.backend)
            if not self._up:
                out.transport.abort()
                raise OSError("cut meanwhile")
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, out}
        await asyncio.gather(copy_bytes(reader, out), copy_bytes(there, writer))
        self._writers -= {writer, out}


async def copy_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward everything until one end closes, then close the other."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
