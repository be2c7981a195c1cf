"""KV transport over tcp: one authenticated connection at a time per pull, reused afterwards.

Server and client ends of the protocol in `protocol.py`, on the event loop (uvloop in the engine).
The server writes header and payload without copying the payload; the client lets it land in its
blocks. Timeouts bound every wait; a connection with an error is dropped, never reused.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.http1.listen import listening
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.frames import FrameConnection, Landing
from pdserve.refengine.kv.kv_transport import Exporter, Keyring, Link, PeerAddress, TransportError
from pdserve.refengine.kv.protocol import FrameKind, Proof
from pdserve.terms.json import JsonObject

HANDSHAKE_SECONDS = 3.0
PING_SECONDS = 2.0
IDLE_PER_PEER = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is in handshakes; only equal `model` fingerprints may exchange KV."""

    id: str
    keys: Keyring
    model: str
    numerics: str


class _Server(FrameConnection):
    def __init__(self, me: Identity, exporter: Exporter, all_open: set[_Server]) -> None:
        super().__init__()
        self._me, self._exporter, self._all = me, exporter, all_open
        self._nonce = secrets.token_hex(16)
        self._peer: str | None = None
        self._proof: Proof | None = None
        self._sending: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _no_delay(transport)
        self._all.add(self)
        self.send(FrameKind.CHALLENGE, {"id": self._me.id, "nonce": self._nonce})
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self._silent)

    def frame(self, kind: FrameKind, body: JsonObject) -> None:
        if kind is FrameKind.HELLO and self._peer is None:
            self._hello(body)
        elif self._peer is None:
            raise TransportError(f"{kind.name} before the handshake")
        elif kind is FrameKind.PING:
            self.send(FrameKind.PONG)
        elif kind is FrameKind.PULL:
            self._pull(str(body.get("request")), self._peer)
        elif kind is FrameKind.DONE:
            self._sending = None
            self._exporter.pulled(str(body.get("request")), self._peer)
        else:
            raise TransportError(f"unexpected {kind.name}")

    def keys_changed(self) -> None:
        """Drop a connection whose key counts no more; one that sends is left to its end."""
        if self._peer is None or self._sending is not None:
            return
        if self._proof not in self._me.keys.proofs_from(self._peer):
            self.abort()

    def landed(self, landing: Landing) -> None:
        raise TransportError("payload sent to a server")

    def closed(self, reason: str) -> None:
        self._timer.cancel()
        self._all.discard(self)
        if self._sending is not None and self._peer is not None:
            self._exporter.pull_failed(self._sending, self._peer)
            self._sending = None

    def _silent(self) -> None:
        if self._peer is None:
            self.abort()

    def _hello(self, body: JsonObject) -> None:
        peer, nonce, model = (str(body.get(k)) for k in ("id", "nonce", "model"))
        proof = next(
            (p for p in self._me.keys.proofs_from(peer) if p.name == body.get("key")), None
        )
        if proof is None:
            self._refuse(f"no such key of {peer!r} is known to {self._me.id}")
        elif not protocol.same(self._mac(proof, "client", peer, nonce, model), body.get("mac")):
            self._refuse("wrong token")
        elif body.get("to") != self._me.id:
            self._refuse(f"this is {self._me.id}, not {body.get('to')}")
        elif model != self._me.model:
            self._refuse(f"model {self._me.model} here, {model} there")
        elif (reason := self._exporter.admits(peer)) is not None:
            self._refuse(reason)
        else:
            self._peer, self._proof = peer, proof
            answer = self._mac(proof, "server", peer, nonce, model)
            self.send(
                FrameKind.WELCOME,
                {"model": self._me.model, "numerics": self._me.numerics, "mac": answer},
            )

    def _mac(self, proof: Proof, side: str, peer: str, nonce: str, model: str) -> str:
        return protocol.mac(
            proof,
            side,
            server=self._me.id,
            client=peer,
            nonces=(self._nonce, nonce),
            model=model,
        )

    def _refuse(self, reason: str) -> None:
        self.send(FrameKind.REFUSED, {"reason": reason})
        if self.transport is not None:
            self.transport.close()

    def _pull(self, request: str, peer: str) -> None:
        refusal = self._exporter.admits(peer)
        if refusal is None and self._proof not in self._me.keys.proofs_from(peer):
            refusal = f"the key that {peer} proved counts no more"
        if refusal is not None:
            # It left the table, or keys were rotated, since its handshake.
            self.send(FrameKind.MISSING, {"reason": refusal})
            return
        payload = self._exporter.export(request, peer)
        if payload is None:
            self.send(FrameKind.MISSING, {"reason": f"no KV held for request {request!r}"})
            return
        self._sending = request
        head = {"tokens": payload.tokens, "bytes": len(payload.data), "crc": payload.checksum}
        self.send(FrameKind.KV, head)
        if self.transport is not None:
            self.transport.write(payload.data)


class _Client(FrameConnection):
    """One outgoing connection; one question at a time."""

    def __init__(self, me: Identity, peer: PeerAddress) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self._me, self._address = me, peer
        self._answer: asyncio.Future[int] | None = loop.create_future()
        self._gone: asyncio.Future[str] = loop.create_future()
        self._asked: tuple[int, Sequence[memoryview]] | None = None
        self._checksum = self._size = 0
        self._nonces = ("", secrets.token_hex(16))
        self._proof: Proof | None = None
        self.numerics = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _no_delay(transport)

    def frame(self, kind: FrameKind, body: JsonObject) -> None:
        if kind is FrameKind.CHALLENGE:
            self._challenged(body)
        elif kind is FrameKind.WELCOME:
            self._welcomed(body)
        elif kind in (FrameKind.REFUSED, FrameKind.MISSING):
            self._fail(TransportError(f"{self._address.id} refused: {body.get('reason')}"))
        elif kind is FrameKind.PONG:
            self._done(0)
        elif kind is FrameKind.KV and self._asked is not None:
            self._arriving(body, *self._asked)
        else:
            raise TransportError(f"unexpected {kind.name}")

    def landed(self, landing: Landing) -> None:
        if landing.checksum != self._checksum:
            raise TransportError(
                f"KV payload is corrupt: CRC {landing.checksum:08x}, announced {self._checksum:08x}"
            )
        self._done(self._size)

    def closed(self, reason: str) -> None:
        if not self._gone.done():
            self._gone.set_result(reason)
        self._fail(TransportError(f"{self._address.id}: {reason}"))

    @property
    def usable(self) -> bool:
        """Neither lost, nor in the middle of something, nor verified by a key of yesterday."""
        idle = self._answer is None and not self._gone.done()
        return idle and self._proof == self._me.keys.proof_to(self._address.id)

    async def answer(self) -> int:
        """Wait for what was asked last; a failed or interrupted wait ruins the connection."""
        future = self._answer
        if future is None:
            raise TransportError("nothing was asked")
        try:
            return await future
        except BaseException:
            self.abort()
            raise
        finally:
            self._answer = None
            self._asked = None

    def ask(self, kind: FrameKind, body: JsonObject | None = None) -> None:
        """Send a question whose answer `answer` returns."""
        if self._answer is not None or self._gone.done():
            raise TransportError(f"{self._address.id}: connection is gone")
        self._answer = asyncio.get_running_loop().create_future()
        self.send(kind, body)

    async def pull(self, request: str, tokens: int, landing: Sequence[memoryview]) -> int:
        """Fill `landing`, check it, confirm it."""
        self._asked = (tokens, landing)
        self.ask(FrameKind.PULL, {"request": request})
        size = await self.answer()
        self.send(FrameKind.DONE, {"request": request})
        return size

    async def lost(self) -> str:
        """Wait for the loss of the connection, asking the peer for life signs."""
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    return await asyncio.shield(self._gone)
            except TimeoutError:
                pass
            try:
                self.ask(FrameKind.PING)
                async with asyncio.timeout(PING_SECONDS):
                    await self.answer()
            except TimeoutError:
                return f"no life sign for {PING_SECONDS:g} s"
            except TransportError as error:
                return str(error)

    def close(self) -> None:
        """Give the connection up."""
        self.abort()

    def _challenged(self, body: JsonObject) -> None:
        if body.get("id") != self._address.id:
            raise TransportError(
                f"{self._address.host}:{self._address.port} is {body.get('id')}, "
                f"not {self._address.id}"
            )
        me = self._me
        proof = self._proof = me.keys.proof_to(self._address.id)
        if proof is None:
            raise TransportError(f"no key for {self._address.id} is known here")
        self._nonces = (str(body.get("nonce")), self._nonces[1])
        hello = {
            "id": me.id,
            "to": self._address.id,
            "nonce": self._nonces[1],
            "model": me.model,
            "numerics": me.numerics,
            "mac": self._mac(proof, "client"),
        }
        if proof.name is not None:
            hello["key"] = proof.name
        self.send(FrameKind.HELLO, hello)

    def _welcomed(self, body: JsonObject) -> None:
        proof = self._proof
        if proof is None or not protocol.same(self._mac(proof, "server"), body.get("mac")):
            raise TransportError(f"{self._address.id} does not know the key")
        self.numerics = str(body.get("numerics"))
        self._done(0)

    def _mac(self, proof: Proof, side: str) -> str:
        return protocol.mac(
            proof,
            side,
            server=self._address.id,
            client=self._me.id,
            nonces=self._nonces,
            model=self._me.model,
        )

    def _arriving(self, body: JsonObject, tokens: int, landing: Sequence[memoryview]) -> None:
        size, crc = body.get("bytes"), body.get("crc")
        if body.get("tokens") != tokens or not isinstance(size, int) or not isinstance(crc, int):
            raise TransportError(f"KV of {body.get('tokens')} tokens announced, {tokens} expected")
        self._checksum, self._size = crc, size
        self.expect(Landing(landing, size))

    def _done(self, value: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(value)

    def _fail(self, error: TransportError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class TcpTransport:
    """`Transport` over tcp."""

    def __init__(self, me: Identity, exporter: Exporter, timeout: float) -> None:
        self._me, self._exporter, self._timeout = me, exporter, timeout
        self._idle: dict[PeerAddress, list[_Client]] = {}
        self._server: asyncio.Server | None = None
        self._accepted: set[_Server] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Server(self._me, self._exporter, self._accepted), **listening(host, port)
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def link(self, peer: PeerAddress) -> Link:
        """Connect and verify both sides; raises TransportError."""
        return await self._connect(peer)

    async def pull(
        self, peer: PeerAddress, request_id: str, tokens: int, landing: Sequence[memoryview]
    ) -> int:
        """Fill `landing` with the KV of a request; returns bytes; raises TransportError."""
        client = self._reusable(peer)
        try:
            async with asyncio.timeout(self._timeout):
                if client is None:
                    client = await self._connect(peer)
                size = await client.pull(request_id, tokens, landing)
        except TimeoutError as error:
            raise TransportError(
                f"KV pull from {peer.id} took longer than {self._timeout:g} s"
            ) from error
        idle = self._idle.setdefault(peer, [])
        if client.usable and len(idle) < IDLE_PER_PEER:
            idle.append(client)
        else:
            client.close()
        return size

    def keys_changed(self) -> None:
        """Drop kept connections whose key is not the one to use, or not accepted, any more."""
        for peer, clients in self._idle.items():
            fresh = [client for client in clients if client.usable]
            for client in clients:
                if client not in fresh:
                    client.close()
            self._idle[peer] = fresh
        for connection in tuple(self._accepted):
            connection.keys_changed()

    async def stop(self) -> None:
        """Close everything."""
        for clients in self._idle.values():
            for client in clients:
                client.close()
        self._idle.clear()
        for connection in tuple(self._accepted):
            connection.abort()
        if self._server is not None:
            self._server.close()

    def _reusable(self, peer: PeerAddress) -> _Client | None:
        idle = self._idle.get(peer, [])
        while idle:
            client = idle.pop()
            if client.usable:
                return client
        return None

    async def _connect(self, peer: PeerAddress) -> _Client:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                _, client = await loop.create_connection(
                    lambda: _Client(self._me, peer), peer.host, peer.port
                )
                try:
                    await client.answer()
                except TransportError:
                    self._me.keys.pair_refused(peer.id)
                    raise
                return client
        except TimeoutError as error:
            raise TransportError(f"{peer.id}: no handshake in {HANDSHAKE_SECONDS:g} s") from error
        except OSError as error:
            raise TransportError(f"{peer.id} at {peer.host}:{peer.port}: {error}") from error


def _no_delay(transport: asyncio.BaseTransport) -> None:
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
