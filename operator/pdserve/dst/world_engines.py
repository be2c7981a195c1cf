"""Engine processes of the `world`: they link as their peer tables say, and answer the linker."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pdserve.controllers.shared.instance_calls import EngineError, Target
from pdserve.desired.service_credentials import Terms
from pdserve.wire.credentials import CAPABILITY
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable


@dataclass(slots=True)
class SimulatedEngine:
    """One engine process (a container)."""

    pod: str
    table: PeerTable | None = None
    grant: str = ""
    """Revision of the newest grant."""
    terms: Terms | None = None
    """Of the newest grant."""
    legacy: bool = False
    """Of a version that reads no grants."""
    linked_once: bool = False
    role: str = ""
    """In which its first table named it; empty before."""
    draining: bool = False
    busy: int = 0
    frozen: bool = False
    stopped_at: float = 0.0
    """Loop time at which it last stopped to answer, alone, on a node that is well."""
    restarted_at: float = -math.inf
    """Loop time at which it took the place of another process of its pod."""
    spoil: Callable[[object], object] | None = None
    """What becomes of its answers; None: it says the truth."""


class Engines:
    """All engine processes by address; answers the linker as real ones would."""

    def __init__(self) -> None:
        self.by_ip: dict[str, SimulatedEngine] = {}
        self.calls: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        """Requests of the operator by endpoint, answered or not."""
        self.drained: list[str] = []
        """Pods in the order in which they were told to drain, repeats included."""

    def report(self, engine: SimulatedEngine) -> LinkReport:
        """`GET /pdserve/v1/links`."""
        table = engine.table
        if table is None:
            return LinkReport(0, frozenset(), {}, 0 if engine.legacy else CAPABILITY)
        up, down = set(), {}
        for peer in table.opposite(engine.pod):
            other = self.by_ip.get(peer.endpoint.removeprefix("http://").partition(":")[0])
            if other is None or other.pod != peer.id or other.frozen:
                down[peer.id] = "connection refused"
            elif other.table is None or other.table.peer(engine.pod) is None:
                down[peer.id] = "peer does not know us"
            else:
                up.add(peer.id)
        if engine.legacy:
            return LinkReport(table.version, frozenset(up), down)
        return LinkReport(table.version, frozenset(up), down, CAPABILITY, engine.grant)

    def ready(self, engine: SimulatedEngine) -> bool:
        """`/readyz`."""
        report = self.report(engine)
        # A decode or prefill whose table names no opposite has nothing to verify yet.
        if report.complete and engine.table is not None and engine.table.opposite(engine.pod):
            engine.linked_once = True
        return engine.linked_once and not engine.draining and not engine.frozen

    def _find(self, target: Target) -> SimulatedEngine:
        self.asked[target.endpoint] += 1
        engine = self.by_ip.get(target.endpoint.removeprefix("http://").partition(":")[0])
        if engine is None or engine.frozen:
            raise EngineError("connection refused")
        return engine

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        """`PUT /pdserve/v1/peers`.

        Raises:
            EngineError: no engine answers at the target, or the table does not name it.
        """
        self.calls["put"] += 1
        await asyncio.sleep(0.005)
        engine = self._find(target)
        me = table.peer(engine.pod)
        if me is None:
            raise EngineError("HTTP 422")
        if me.role != engine.role:
            if engine.role:  # a role flip: its parts are made anew
                engine.table, engine.linked_once, engine.draining = None, False, False
            engine.role = me.role
        if engine.table is None or table.version > engine.table.version:
            engine.table = table
        if target.terms is not None and not engine.legacy:
            engine.grant, engine.terms = target.terms.revision, target.terms

    async def get_links(self, target: Target) -> LinkReport:
        """`GET /pdserve/v1/links`."""
        self.calls["links"] += 1
        await asyncio.sleep(0.005)
        engine = self._find(target)
        self.ready(engine)  # an engine sees itself when its links are up, probed or not
        return LinkReport.from_json(self._said(engine, self.report(engine).to_json()))

    async def post_drain(self, target: Target) -> DrainReport:
        """`POST /pdserve/v1/drain`."""
        self.calls["drain"] += 1
        self.drained.append(target.instance)
        await asyncio.sleep(0.005)
        engine = self._find(target)
        engine.draining = True
        return DrainReport.from_json(self._said(engine, DrainReport(engine.busy, 0, 0).to_json()))

    def _said(self, engine: SimulatedEngine, answer: object) -> object:
        """The answer as it arrives; `spoil` makes it another."""
        return answer if engine.spoil is None else engine.spoil(answer)
