"""A member that is not the leader: it computes its layers, and keeps their KV, as it is asked to.

One thread accepts connections, and each has a thread of its own until it is verified or refused.
There is one leader at a time: a new one that proves the key ends the connection of the former, and
begins with empty KV memory.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import socket
import threading
from collections.abc import Callable

import numpy as np

from pdserve.http1.listen import EVERYWHERE, listening
from pdserve.refengine.members.handshake import MemberIdentity, Proofs, receive_leader
from pdserve.refengine.members.messages import Bytes, MemberGoneError, MemberKind, MemberStream
from pdserve.refengine.model.layer_share import LayerShare
from pdserve.refengine.model.loader import StagedPass
from pdserve.refengine.model.model_config import LlamaConfig
from pdserve.refengine.model.plan import Rows, StepPlan, blocks_of, new_pool
from pdserve.refengine.model.tensors import Array, Ints
from pdserve.terms.json import JsonMap, JsonObject

SILENCE_SECONDS = 60.0
"""A leader that asked nothing for so long is gone: it asks for a life sign every second."""
MOST_UNVERIFIED = 8

log = logging.getLogger(__name__)


class MemberWorker:
    """Listens for the leader and does what it asks."""

    def __init__(
        self, me: MemberIdentity, model: StagedPass, config: LlamaConfig, share: LayerShare,
        proofs: Proofs,
    ) -> None:  # fmt: skip
        """`config`: of the whole model; `model` computes `share` of it."""
        self._me, self._model, self._config, self._share = me, model, config, share
        self._proofs = proofs
        self._lock = threading.Lock()
        self._serving = threading.Lock()
        self._stream: MemberStream | None = None
        self._unverified = threading.BoundedSemaphore(MOST_UNVERIFIED)
        self._server: socket.socket | None = None
        self._closed = False
        self.steps = 0
        """Steps that it computed."""

    @property
    def leader_there(self) -> bool:
        """Whether the leader is connected."""
        return self._stream is not None

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port (0 asks for a free one).

        Raises:
            OSError: the address cannot be listened on.
        """
        if host == EVERYWHERE:
            server: socket.socket = listening(host, port)["sock"]
            server.setblocking(True)
            server.listen()
        else:
            server = socket.create_server((host, port))
        self._server = server
        threading.Thread(target=self._accept, name="members", daemon=True).start()
        return int(server.getsockname()[1])

    def stop(self) -> None:
        """End all connections."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        with self._lock:
            if self._stream is not None:
                self._stream.close()

    def _accept(self) -> None:
        while self._server is not None and not self._closed:
            try:
                sock, address = self._server.accept()
            except OSError:
                return
            if not self._unverified.acquire(blocking=False):
                sock.close()
                continue
            stream = MemberStream(sock, f"{address[0]}:{address[1]}")
            threading.Thread(target=self._meet, args=(stream,), daemon=True).start()

    def _meet(self, stream: MemberStream) -> None:
        try:
            blocks = receive_leader(stream, self._me, self._share, self._proofs)
        except MemberGoneError as error:
            log.warning("no leader: %s", error)
            stream.close()
            return
        finally:
            self._unverified.release()
        with self._lock:
            if self._stream is not None:
                self._stream.close()
            self._stream = stream
        with self._serving:  # what the former leader asked for has ended
            session = _Session(stream, self._model, self._config, self._share, blocks)
            log.info("%s: the leader is there, %d KV blocks", self._me.id, blocks)
            try:
                while True:
                    session.answer()
                    self.steps = self.steps + session.computed
            except MemberGoneError as error:
                log.warning("the leader is gone: %s", error)
            except Exception:  # of the computation: the leader learns it by the connection's end
                log.exception("what the leader asked failed")
            finally:
                stream.close()
                with self._lock:
                    if self._stream is stream:
                        self._stream = None


class _Session:
    """What one leader asks, and the KV of the own layers for it."""

    def __init__(
        self, stream: MemberStream, model: StagedPass, config: LlamaConfig, share: LayerShare,
        blocks: int,
    ) -> None:  # fmt: skip
        self._stream, self._model, self._config = stream, model, config
        self._pool = new_pool(dataclasses.replace(config, layers=share.count), blocks)
        self.computed = 0
        self._do: dict[MemberKind, Callable[[JsonMap, Bytes], None]] = {
            MemberKind.PING: self._ping,
            MemberKind.STEP: self._step,
            MemberKind.READ: self._read,
            MemberKind.WRITE: self._write,
        }

    def answer(self) -> None:
        """Take one message and answer it.

        Raises:
            MemberGoneError: the leader is gone, or asks what makes no sense.
        """
        self.computed = 0
        try:
            kind, fields, payload = self._stream.receive(self._size, SILENCE_SECONDS)
        except ValueError as error:  # fields that make no sense
            self._stream.send(MemberKind.FAILED, {"why": str(error)})
            raise MemberGoneError(f"{self._stream.peer}: {error}") from error
        self._do[kind](fields, payload)

    def _size(self, kind: MemberKind, fields: JsonObject) -> int:
        """Of the payload that must follow; ValueError for fields that make no sense."""
        if kind not in self._do:
            raise ValueError(f"unexpected {kind.name}")
        if kind is MemberKind.WRITE:
            each: int = self._pool[0].nbytes
            return len(self._blocks(fields)) * each
        if kind is MemberKind.READ:
            self._blocks(fields)
        if kind is not MemberKind.STEP:
            return 0
        shape = self._model.hidden_shape(StepPlan(self._rows(fields, None)))
        tables = sum(row[2] for row in self._numbers(fields))
        size: int = 8 * tables + 4 * math.prod(shape)
        return size

    def _ping(self, _fields: JsonMap, _payload: Bytes) -> None:
        self._stream.send(MemberKind.PONG)

    def _step(self, fields: JsonMap, payload: Bytes) -> None:
        size = 8 * sum(row[2] for row in self._numbers(fields))
        tables = payload[:size].view(np.int64)
        if len(tables) and not (tables.min() >= 0 and tables.max() < len(self._pool)):
            raise MemberGoneError(f"{self._stream.peer}: a KV block that does not exist")
        plan = StepPlan(self._rows(fields, tables))
        x = payload[size:].view(np.float32).reshape(self._model.hidden_shape(plan))
        self._model.advance(x, plan, self._pool)
        self.computed = 1
        self._stream.send(MemberKind.STEPPED, parts=(x.data.cast("B"),))

    def _read(self, fields: JsonMap, _payload: Bytes) -> None:
        found: Array = self._pool[self._blocks(fields)]
        self._stream.send(MemberKind.BLOCKS, parts=(found.data.cast("B"),))

    def _write(self, fields: JsonMap, payload: Bytes) -> None:
        blocks = self._blocks(fields)
        shape = (len(blocks), *self._pool.shape[1:])
        self._pool[blocks] = payload.view(np.float32).reshape(shape)
        self._stream.send(MemberKind.WRITTEN)

    def _blocks(self, fields: JsonMap) -> list[int]:
        blocks = fields.get("blocks")
        most = len(self._pool)
        if not isinstance(blocks, list) or not all(
            type(b) is int and 0 <= b < most for b in blocks
        ):
            raise ValueError("blocks: ids of KV blocks are required")
        return blocks

    def _numbers(self, fields: JsonMap) -> list[list[int]]:
        """Start, count and number of blocks of each row."""
        rows = fields.get("rows")
        if not isinstance(rows, list) or not rows or not all(self._sound(row) for row in rows):
            raise ValueError("rows: start, count and blocks of each are required")
        return rows

    def _sound(self, row: object) -> bool:
        if not isinstance(row, list) or len(row) != 3 or not all(type(n) is int for n in row):
            return False
        start, count, blocks = map(int, row)
        end, most = start + count, self._config.context
        fits = start >= 0 and count >= 1 and end <= most
        return fits and blocks_of(end) <= blocks <= blocks_of(most)

    def _rows(self, fields: JsonMap, tables: Ints | None) -> list[Rows]:
        """Rows of a step; without tables, such as have the same shape."""
        made, at = [], 0
        for start, count, blocks in self._numbers(fields):
            table = np.zeros(blocks, np.int64) if tables is None else tables[at : at + blocks]
            made.append(Rows(np.zeros(count, np.int32), start, table, False))
            at += blocks
        return made
