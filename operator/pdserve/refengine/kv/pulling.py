"""The end of a KV connection that opens it: it verifies the peer and receives payloads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pdserve.engines.trust import Proof
from pdserve.http1.stalls import within
from pdserve.refengine.kv import integrity, protocol
from pdserve.refengine.kv.device_addresses import MAX_DEVICES
from pdserve.refengine.kv.frames import CheckedLanding, FrameConnection, WholeLanding
from pdserve.refengine.kv.integrity import KvIdentity
from pdserve.refengine.kv.kv_transport import (
    CorruptKvError,
    Identity,
    PathError,
    PeerAddress,
    TransportError,
    WantedKv,
)
from pdserve.refengine.kv.payload import frame_sizes
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.terms.json import JsonObject

PING_SECONDS = 2.0
_ANSWERS = {
    FrameKind.HELLO: (FrameKind.CHALLENGE, FrameKind.WELCOME, FrameKind.REFUSED),
    FrameKind.PING: (FrameKind.PONG,),
    FrameKind.PULL: (FrameKind.KV, FrameKind.MISSING),
}
"""What may come while each question waits for its answer; nothing may while none does."""


class PullingEnd(FrameConnection):
    """One connection to a peer; one question at a time."""

    def __init__(self, me: Identity, peer: PeerAddress, frame_blocks: int = 0) -> None:
        """`frame_blocks`: blocks in a frame; 0: as many as is usual."""
        super().__init__()
        loop = asyncio.get_running_loop()
        self._me, self._address = me, peer
        self._answer: asyncio.Future[int] | None = loop.create_future()
        self._question = FrameKind.HELLO
        self._gone: asyncio.Future[str] = loop.create_future()
        self._asked: tuple[WantedKv, Sequence[memoryview]] | None = None
        self._frame_blocks, self._size = frame_blocks, 0
        self._nonces = ("", protocol.new_nonce())
        self._proof: Proof | None = None
        self.numerics = ""
        self.devices: tuple[str, ...] = ()
        """Addresses of its devices at which the peer says that it listens."""

    def frame(self, kind: FrameKind, body: JsonObject) -> None:
        """Take an answer of the peer.

        Raises:
            TransportError: this kind of frame is not expected now.
        """
        waits = self._answer is not None and not self._answer.done()
        if not waits or kind not in _ANSWERS[self._question]:
            raise TransportError(f"unexpected {kind.name}")
        if kind is FrameKind.CHALLENGE:
            self._challenged(body)
        elif kind is FrameKind.WELCOME:
            self._welcomed(body)
        elif kind in (FrameKind.REFUSED, FrameKind.MISSING):
            self._fail(TransportError(f"{self._address.id} refused: {body.get('reason')}"))
        elif kind is FrameKind.PONG:
            self._done(0)
        elif self._asked is not None:
            self._arriving(body, *self._asked)

    def landed(self) -> None:
        """End the pull."""
        self._done(self._size)

    def closed(self, reason: str, error: TransportError | None = None) -> None:
        """What waits for an answer fails.

        KV is corrupt where its checksum says so, and where the peer, which checks frames, answers
        a pull with what is no answer to it.
        """
        if not self._gone.done():
            self._gone.set_result(reason)
        strange = error is not None and self._asked is not None and self._checks
        corrupt = strange or isinstance(error, CorruptKvError)
        self._fail((CorruptKvError if corrupt else PathError)(f"{self._address.id}: {reason}"))

    @property
    def usable(self) -> bool:
        """Whether it is open, idle, and verified by a key that still holds."""
        idle = self._answer is None and not self._gone.done()
        return idle and self._proof == self._me.keys.proof_to(self._address.id)

    async def answer(self) -> int:
        """Wait for the answer to the last question: the bytes pulled, 0 for any other question.

        A failed or interrupted wait ends the connection.

        Raises:
            TransportError: nothing was asked, or the peer refused or sent something wrong.
        """
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
        """Send a question whose answer `answer` returns.

        Raises:
            PathError: the connection is gone, or waits for another answer.
        """
        if self._answer is not None or self._gone.done():
            raise PathError(f"{self._address.id}: connection is gone")
        self._answer = asyncio.get_running_loop().create_future()
        self._question = kind
        self.send(kind, body)

    async def pull(self, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        """Fill `landing`, check it, confirm it; the bytes pulled."""
        self._asked = (wanted, landing)
        question: JsonObject = {"request": wanted.request}
        if self._checks:
            each = self._blocks_in_frame(wanted, landing)
            question |= {"tokens": wanted.tokens, "generation": wanted.generation, "each": each}
        self.ask(FrameKind.PULL, question)
        size = await self.answer()
        self.send(FrameKind.DONE, {"request": wanted.request})
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
                async with within(PING_SECONDS):
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
        devices = body.get("devices")  # engines of older versions name none
        if isinstance(devices, list):
            self.devices = tuple(d for d in devices[:MAX_DEVICES] if isinstance(d, str))
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

    @property
    def _checks(self) -> bool:
        return protocol.checks_frames(self._nonces[0])

    def _blocks_in_frame(self, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        size = sum(map(len, landing)) // blocks_for(wanted.tokens)
        return self._frame_blocks or integrity.blocks_in_frame(size)

    def _arriving(self, body: JsonObject, wanted: WantedKv, landing: Sequence[memoryview]) -> None:
        size, tokens = sum(map(len, landing)), wanted.tokens
        if body.get("tokens") != tokens:
            raise TransportError(f"KV of {body.get('tokens')} tokens announced, {tokens} expected")
        if body.get("bytes") != size:
            raise TransportError(f"KV of {body.get('bytes')} bytes for {size} bytes of blocks")
        self._size = size
        if not self._checks:
            self.expect(WholeLanding(landing, body.get("crc")))
            return
        said = body.get("generation")
        generation = said if isinstance(said, int) else 0
        known = 0 < generation <= integrity.MAX_GENERATION
        if not known or wanted.generation not in (0, generation):
            raise TransportError(f"KV of generation {said}, asked for {wanted.generation}")
        blocks = blocks_for(tokens)
        identity = KvIdentity(wanted.request, generation, self._me.model, tokens, size // blocks)
        frames = frame_sizes(blocks, self._blocks_in_frame(wanted, landing))
        self.expect(CheckedLanding(landing, identity, frames))

    def _done(self, value: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(value)

    def _fail(self, error: TransportError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
