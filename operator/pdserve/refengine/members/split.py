"""The forward pass of an instance whose members share the layers, as the leader runs it.

What passes between layers goes to each member in turn and comes back, so a step computes the same
products in the same order as one process would: in exact mode the bits are the same. The leader's
KV pool has all layers. Of the others' layers it holds what was handed over or taken in, as a
device's host does (`KvMirror`): a prefill's KV is read from the members once, when its prompt is
done, and travels to a decode as ever; a decode sends what it pulled to its members before the step
that reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from pdserve.refengine.members.links import MemberLink, MemberLinks
from pdserve.refengine.members.messages import CHUNK_BYTES, MemberGoneError, MemberKind
from pdserve.refengine.model.loader import StagedPass
from pdserve.refengine.model.plan import Rows, StepPlan
from pdserve.refengine.model.tensors import Array, Ints


class SplitPass:
    """`ForwardPass` and `KvMirror` of an instance of several members."""

    def __init__(self, own: StagedPass, links: MemberLinks) -> None:
        """`own` computes embedding, the first layers, and the head."""
        self._own, self._links = own, links
        self._pool: Array | None = None
        self._lock = threading.Lock()
        self._received: set[int] = set()

    def step(self, batch: Sequence[Rows], pool: Array) -> Array:
        """As `ForwardPass`.

        Raises:
            MemberGoneError: a member is not there, or was lost in the midst.
        """
        self._pool = pool
        links = self._links.all()
        self._give(batch, pool, links)
        plan = StepPlan(batch)
        x = self._own.embedded(plan)
        self._own.advance(x, plan, pool)
        rows = [[r.start, len(r.tokens), len(r.table)] for r in batch]
        tables = np.concatenate([np.asarray(r.table, np.int64) for r in batch])
        for link in links:
            parts = (_bytes(tables), _bytes(x))
            came = link.ask(MemberKind.STEP, {"rows": rows}, parts, MemberKind.STEPPED, x.nbytes)
            x = came.view(np.float32).reshape(x.shape)
        return self._own.logits(x, plan)

    def received(self, blocks: list[int]) -> None:
        """As `KvMirror`; called on the event loop."""
        with self._lock:
            self._received.update(blocks)

    def fetch(self, blocks: list[int]) -> None:
        """As `KvMirror`.

        Raises:
            MemberGoneError: a member is not there.
        """
        pool = self._pool
        if pool is None:
            raise MemberGoneError("nothing was computed yet")
        for link in self._links.all():
            layers = slice(link.share.first, link.share.end)
            for some in _chunks(blocks, pool, link):
                shape = (len(some), link.share.count, *pool.shape[2:])
                size = int(np.prod(shape)) * 4
                came = link.ask(MemberKind.READ, {"blocks": some}, (), MemberKind.BLOCKS, size)
                pool[some, layers] = came.view(np.float32).reshape(shape)

    def _give(self, batch: Sequence[Rows], pool: Array, links: Sequence[MemberLink]) -> None:
        """Send the members what others wrote into the blocks of this batch."""
        with self._lock:
            late = sorted({int(b) for r in batch for b in r.table if b in self._received})
            self._received.difference_update(late)
        for link in links if late else ():
            layers = slice(link.share.first, link.share.end)
            for some in _chunks(late, pool, link):
                part = _bytes(np.ascontiguousarray(pool[some, layers]))
                link.ask(MemberKind.WRITE, {"blocks": some}, (part,), MemberKind.WRITTEN, 0)


def _chunks(blocks: list[int], pool: Array, link: MemberLink) -> Iterator[list[int]]:
    each = pool[0, 0].nbytes * link.share.count
    most = max(1, CHUNK_BYTES // each)
    for first in range(0, len(blocks), most):
        yield blocks[first : first + most]


def _bytes(array: Array | Ints) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")
