"""The leader's connections to the other members of its instance.

One task per member connects, proves both ends, and then watches the connection; after a loss it
tells the engine, whose KV is then incomplete, and tries again with growing pauses. The compute
thread uses the connections (`split`); only the event loop makes and gives them up, so no step ever
runs on a member that started anew without the engine having dropped what it held there.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import threading
from collections.abc import Callable, Sequence

from pdserve.http1.errors import ApiError
from pdserve.refengine.kv.kv_transport import HANDSHAKE_SECONDS, PeerAddress, TransportError
from pdserve.refengine.members.handshake import MemberIdentity, Proofs, greet
from pdserve.refengine.members.messages import Bytes, MemberGoneError, MemberKind, MemberStream
from pdserve.refengine.model.layer_share import LayerShare
from pdserve.terms.json import JsonObject
from pdserve.wire.peers import Peer

ANSWER_SECONDS = 30.0
"""Longest that a member may take for its layers of one step, or for one message of KV."""
PING_SECONDS = 1.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0

log = logging.getLogger(__name__)


class MemberLink:
    """One verified connection; one question at a time, from whatever thread."""

    def __init__(self, stream: MemberStream, share: LayerShare) -> None:
        self.share = share
        self._stream = stream
        self._lock = threading.Lock()
        self.broken: str | None = None
        """Why it cannot be used any more; None while it can."""
        self.on_broken: Callable[[], None] = lambda: None
        """Called once, from whatever thread."""

    def ask(
        self,
        kind: MemberKind,
        fields: JsonObject,
        parts: Sequence[memoryview],
        answer: MemberKind,
        size: int,
    ) -> Bytes:
        """The payload of `size` bytes of the answer.

        Raises:
            MemberGoneError: it gave none; the connection is broken then.
        """
        with self._lock:
            if self.broken is not None:
                raise MemberGoneError(self.broken)
            try:
                return self._asked(kind, fields, parts, answer, size)
            except MemberGoneError as error:
                self._break(str(error))
                raise

    def ping(self) -> None:
        """Ask for a life sign; nothing while it answers another question."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
            try:
                self.ask(MemberKind.PING, {}, (), MemberKind.PONG, 0)
            except MemberGoneError:
                return  # it is broken now, which is what was asked

    def close(self) -> None:
        """Give it up; a thread that waits for an answer gets MemberGoneError."""
        self._stream.close()
        self._break("closed")

    def _break(self, why: str) -> None:
        if self.broken is None:
            self.broken = why
            self._stream.close()
            self.on_broken()

    def _asked(
        self,
        kind: MemberKind,
        fields: JsonObject,
        parts: Sequence[memoryview],
        answer: MemberKind,
        size: int,
    ) -> Bytes:
        def expected(came: MemberKind, said: JsonObject) -> int:
            if came is MemberKind.FAILED:
                raise MemberGoneError(f"{self._stream.peer}: {str(said.get('why'))[:200]}")
            if came is not answer:
                raise MemberGoneError(f"{self._stream.peer}: unexpected {came.name}")
            return size

        self._stream.send(kind, fields, parts, ANSWER_SECONDS)
        return self._stream.receive(expected, ANSWER_SECONDS)[2]


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


class MemberLinks:
    """All members but the leader."""

    def __init__(self, me: MemberIdentity, shares: Sequence[LayerShare], proofs: Proofs) -> None:
        """`shares`: of all members; `proofs`: keys of the instance."""
        self._me, self._shares, self._proofs = me, shares, proofs
        self.blocks = 0
        """Of KV memory, which members learn from the handshake."""
        self._up: dict[int, MemberLink] = {}
        self._down = dict.fromkeys(range(1, len(shares)), "its address is not known yet")
        self._tasks: dict[int, tuple[PeerAddress, asyncio.Task[None]]] = {}
        self.lost: Callable[[str], None] = lambda _why: None
        """Called when a member that was there is gone; what it held of KV is lost."""
        self.completed: Callable[[], None] = lambda: None
        """Called whenever all are there."""

    @property
    def missing(self) -> str | None:
        """Which members are not there, and why; None when all are."""
        if not self._down:
            return None
        return "; ".join(f"{self._me.other(i)}: {why}" for i, why in sorted(self._down.items()))

    @property
    def there(self) -> int:
        """How many members are there, the leader included."""
        return len(self._shares) - len(self._down)

    def all(self) -> list[MemberLink]:
        """The connections in the order of the layers.

        Raises:
            MemberGoneError: a member is not there.
        """
        missing = self.missing
        if missing is not None:
            raise MemberGoneError(missing)
        return [link for _, link in sorted(self._up.items())]

    def addresses(self, entry: Peer) -> list[PeerAddress]:
        """Where the members listen, as the instance's entry in a peer table says it.

        Raises:
            ApiError: 422, it names another number of members.
        """
        others = entry.nodes[1:]
        if len(others) != len(self._shares) - 1:
            raise ApiError(
                422,
                f"{entry.id} has {len(self._shares)} members, the peer table says "
                f"{len(entry.nodes)}",
                code="wrong_members",
            )
        try:
            return [
                PeerAddress.parse(self._me.other(i), node.transfer)
                for i, node in enumerate(others, 1)
            ]
        except TransportError as error:
            raise ApiError(422, str(error), code="wrong_members") from error

    def switch(self, addresses: Sequence[PeerAddress]) -> None:
        """Connect to the members here, in order; one whose address changed is a new one."""
        for index, address in enumerate(addresses, 1):
            known = self._tasks.get(index)
            if known is not None:
                if known[0] == address:
                    continue
                known[1].cancel()
                self._gone(index, "it has another address")
            task = asyncio.get_running_loop().create_task(self._keep(index, address))
            self._tasks[index] = (address, task)

    def close(self) -> None:
        """Give all up."""
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        for link in self._up.values():
            link.close()

    async def _keep(self, index: int, address: PeerAddress) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                link = await asyncio.to_thread(self._connect, index, address)
            except MemberGoneError as error:
                self._down[index] = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            broken, loop = asyncio.Event(), asyncio.get_running_loop()
            since = loop.time()
            link.on_broken = functools.partial(_wake, loop, broken)
            self._up[index] = link
            del self._down[index]
            log.info("%s is there", address.id)
            if not self._down:
                self.completed()
            await self._watch(link, broken)
            self._gone(index, link.broken or "lost")
            # One that is lost again and again is asked less often.
            lasted = loop.time() - since > 5 * LONGEST_PAUSE
            pause = FIRST_PAUSE if lasted else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _watch(self, link: MemberLink, broken: asyncio.Event) -> None:
        while link.broken is None:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await broken.wait()
            except TimeoutError:
                await asyncio.to_thread(link.ping)

    def _gone(self, index: int, why: str) -> None:
        link = self._up.pop(index, None)
        self._down[index] = why
        if link is not None:
            link.close()
            log.warning("member %s is gone: %s", self._me.other(index), why)
            self.lost(why)

    def _connect(self, index: int, address: PeerAddress) -> MemberLink:
        try:
            sock = socket.create_connection((address.host, address.port), HANDSHAKE_SECONDS)
        except OSError as error:
            raise MemberGoneError(f"{address.host}:{address.port}: {error}") from error
        stream = MemberStream(sock, address.id)
        try:
            share = self._shares[index]
            numerics = greet(stream, self._me, index, self.blocks, share, self._proofs)
        except BaseException:
            stream.close()
            raise
        if numerics != self._me.numerics:
            log.warning("%s computes other bits (CPU type, --arithmetic): not exact", address.id)
        return MemberLink(stream, share)
