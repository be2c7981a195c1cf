"""Reads what vLLM publishes of its KV blocks over ZeroMQ, without gaps, or knows of them.

vLLM's publisher connects to the proxy's address, on loopback: its events have the prompts' token
ids, which must not leave the pod. Each message has a number. What is missing is asked for at the
replay address, where vLLM keeps the last 10,000 batches; what cannot be had again, and a number
that begins anew, mean that nothing is known of the cache any more. So does a batch that makes no
sense.

ZeroMQ is loaded only where events are read. Neighbours: `kv_events` reads a batch, `leg_chains`
follows the events.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pdserve.engineproxy.kv_events import MAX_BATCH, KvEventError, parse_batch
from pdserve.engineproxy.leg_chains import LegChains

if TYPE_CHECKING:
    import zmq.asyncio

RETRY_SECONDS: Final = 5.0
REPLAY_SECONDS: Final = 2.0
MAX_REPLAY: Final = 4 * MAX_BATCH
"""Bytes of a replay that are kept."""
END: Final = (1 << 64) - 1
"""Number of the message that ends a replay."""
QUEUE: Final = 10_000
"""Messages that wait to be read; more are dropped, and replayed."""

log = logging.getLogger(__name__)


class EventsReader:
    """Follows one engine's events."""

    def __init__(self, endpoint: str, replay: str, chains: LegChains) -> None:
        """`endpoint`: where the publisher connects; `replay`: where it listens, or empty."""
        self._endpoint, self._replay, self._chains = endpoint, replay, chains
        self._next = 0
        """Number of the message that must come."""

    async def run(self) -> None:
        """Read until cancelled; where nothing can be read, try again."""
        import zmq

        while True:
            try:
                await self._read()
            except zmq.ZMQError as error:
                log.error("no events can be read at %s: %s", self._endpoint, error)
                self._chains.cleared()
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> None:
        """Raises ZMQError."""
        import zmq
        import zmq.asyncio

        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.SUB)
            socket.setsockopt(zmq.RCVHWM, QUEUE)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.bind(self._endpoint)
            while True:
                frames = await socket.recv_multipart()
                if len(frames) == 3 and len(frames[1]) == 8:
                    await self._message(context, int.from_bytes(frames[1], "big"), frames[2])
                else:
                    log.warning("the engine published a message of %d parts", len(frames))
                # What is there already is received without a turn of the loop.
                await asyncio.sleep(0)
        finally:
            context.destroy(linger=0)

    async def _message(self, context: zmq.asyncio.Context, number: int, payload: bytes) -> None:
        if number < self._next:
            log.info("the engine's events begin anew")
            self._chains.cleared()
        elif number > self._next:
            await self._catch_up(context, number)
        self._take(number, payload)

    async def _catch_up(self, context: zmq.asyncio.Context, number: int) -> None:
        """Take what came before a message, or note that it is lost."""
        first = self._next
        for missed, payload in await self._replayed(context, first):
            if missed == self._next < number:
                self._take(missed, payload)
        if self._next < number:
            if first:
                log.warning("events %d to %d are lost", self._next, number - 1)
            self._chains.cleared()

    async def _replayed(self, context: zmq.asyncio.Context, first: int) -> list[tuple[int, bytes]]:
        """Messages from number `first` on, as far as the engine has them."""
        import zmq

        found: list[tuple[int, bytes]] = []
        size = 0
        if not self._replay:
            return found
        socket = context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH)
            socket.connect(self._replay)
            async with asyncio.timeout(REPLAY_SECONDS):
                await socket.send_multipart((b"", first.to_bytes(8, "big")))
                while len(found) < QUEUE and size < MAX_REPLAY:
                    frames = await socket.recv_multipart()
                    number = int.from_bytes(frames[1], "big") if len(frames) == 3 else END
                    if number == END:
                        break
                    found.append((number, frames[2]))
                    size += len(frames[2])
                    await asyncio.sleep(0)
        except (TimeoutError, zmq.ZMQError) as error:
            log.warning("the engine did not replay its events from %d: %s", first, error)
        finally:
            socket.close(linger=0)
        return found

    def _take(self, number: int, payload: bytes) -> None:
        self._next = number + 1
        try:
            self._chains.take(parse_batch(payload))
        except KvEventError as error:
            log.warning("the engine's events %d make no sense: %s", number, error)
            self._chains.cleared()
