"""The end of a KV connection that accepts it: it proves its identity and sends payloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pdserve.engines.trust import Proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.frames import FrameConnection
from pdserve.refengine.kv.integrity import KvIdentity
from pdserve.refengine.kv.kv_transport import HANDSHAKE_SECONDS, Exporter, Identity, TransportError
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.terms.json import JsonObject


class SendingEnd(FrameConnection):
    """One accepted connection: proves this instance, then sends what its peer may pull."""

    def __init__(
        self,
        me: Identity,
        exporter: Exporter,
        all_open: set[SendingEnd],
        devices: Callable[[], tuple[str, ...]],
        patience: float,
    ) -> None:
        """Make the end of one connection.

        Args:
            me: this instance.
            exporter: what it holds for its peers.
            all_open: the connections of the instance; this one is in it while it stands.
            devices: at which of its devices' addresses this instance listens.
            patience: seconds within which a peer must have taken and confirmed a payload. A
                stopped one would keep it in memory for ever.
        """
        super().__init__()
        self._patience = patience
        self._devices = devices
        self._me, self._exporter, self._all = me, exporter, all_open
        self._nonce = protocol.new_nonce()
        self._peer: str | None = None
        self._proof: Proof | None = None
        self._sending: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Challenge the peer, and wait for its proof."""
        super().connection_made(transport)
        self._all.add(self)
        self.send(FrameKind.CHALLENGE, {"id": self._me.id, "nonce": self._nonce})
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self._silent)

    def frame(self, kind: FrameKind, body: JsonObject) -> None:
        """Take a question of the peer.

        Raises:
            TransportError: this kind of frame is not expected now.
        """
        if kind is FrameKind.HELLO and self._peer is None:
            self._hello(body)
        elif self._peer is None:
            raise TransportError(f"{kind.name} before the handshake")
        elif kind is FrameKind.PING:
            self.send(FrameKind.PONG)
        elif kind is FrameKind.PULL and self._sending is None:
            self._pull(body, self._peer)
        elif kind is FrameKind.DONE and body.get("request") == self._sending is not None:
            request, self._sending = self._sending, None
            self._timer.cancel()
            self._exporter.pulled(request, self._peer)
        else:
            raise TransportError(f"unexpected {kind.name}")

    def keys_changed(self) -> None:
        """Drop a connection whose key counts no more; one that sends is left to its end."""
        if self._peer is None or self._sending is not None:
            return
        if self._proof not in self._me.keys.proofs_from(self._peer):
            self.abort()

    def landed(self) -> None:
        """Refuse a payload: nothing lands at this end.

        Raises:
            TransportError: always.
        """
        raise TransportError("payload sent to a server")

    def closed(self, reason: str, error: TransportError | None = None) -> None:
        """The KV that was being sent stays for another pull."""
        self._timer.cancel()
        self._all.discard(self)
        if self._sending is not None and self._peer is not None:
            self._exporter.pull_failed(self._sending, self._peer)
            self._sending = None

    def _silent(self) -> None:
        if self._peer is None or self._sending is not None:
            self.abort()

    def _begin(self, request: str) -> None:
        self._sending = request
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._silent)

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
            devices = self._devices()
            self.send(
                FrameKind.WELCOME,
                {
                    "model": self._me.model,
                    "numerics": self._me.numerics,
                    "mac": answer,
                    **({"devices": devices} if devices else {}),
                },
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

    def _pull(self, asked: JsonObject, peer: str) -> None:
        request = str(asked.get("request"))
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
        each = asked.get("each")
        if type(each) is not int or each < 1:
            self._begin(request)
            self._send_whole(payload)
        elif (other := _other_kv(asked, payload)) is not None:
            self._exporter.pull_failed(request, peer)
            self.send(FrameKind.MISSING, {"reason": other})
        else:
            self._begin(request)
            self._send_frames(request, payload, each)

    def _send_whole(self, payload: Payload) -> None:
        """Answer an engine of an older version."""
        sizes = {"tokens": payload.tokens, "bytes": len(payload.data)}
        self.send(FrameKind.KV, {**sizes, "crc": payload.crc32()})
        self._write(payload.data)

    def _send_frames(self, request: str, payload: Payload, each: int) -> None:
        tokens, generation = payload.tokens, payload.generation
        body = {"tokens": tokens, "bytes": len(payload.data), "generation": generation}
        self.send(FrameKind.KV, body)
        identity = KvIdentity(request, generation, self._me.model, tokens, payload.block_bytes)
        for first, count, data, checksum in payload.frames(each):
            self._write(identity.head(checksum, first, count))
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        if self.transport is not None:
            self.transport.write(data)


def _other_kv(asked: JsonObject, payload: Payload) -> str | None:
    """Why the KV that is held is not the KV that is asked for; None when it is."""
    if asked.get("generation") not in (0, payload.generation):
        return f"the KV held for request {asked.get('request')!r} is of another generation"
    if asked.get("tokens") != payload.tokens:
        return f"{payload.tokens} tokens are held, {asked.get('tokens')} are asked for"
    return None
