"""One scenario's gateway, prefills and decodes in virtual time.

On-demand forwarding as the gateways do it: requests wait in order of deadline in front of the
prefills and end when they would be late; a prefill refuses what it cannot compute in time; a group
is offered no more than its decodes have credit for; KV waits in its prefill's slot until a decode
pulls it; decodes run continuous batches. Left out: several
gateways with views of their own, shared uplinks, and clients that try again (gateways answer
`x-should-retry: false`). The plant has a profile of its own; a policy sees its counters alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdserve.forwarding.deadline import SAFETY
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.kernel import events, layout
from pdserve.sim.kernel.compiled import COMPILED
from pdserve.sim.kernel.layout import Arrays, Floats, Ints
from pdserve.terms import Role, Slo

MINUTE = 60.0


class PlantError(Exception):
    """The plant cannot be built or asked as wanted; the message says why."""


@dataclass(frozen=True, slots=True)
class PlantSpec:
    """What a plant is made of."""

    profile: PerformanceProfile
    slo: Slo
    groups: int = 1
    """P/D groups at most."""
    capacity: int = 64
    """Instances of one role in a group at most, draining ones included."""
    prefetch: int = 2
    """KV that a decode pulls ahead of a free slot."""
    transfer: float = 0.005
    """Seconds that each KV transfer takes, and seconds for each token of it."""
    transfer_per_token: float = 3.3e-6
    safety: float = SAFETY
    """Gateways multiply the predicted T_p by this before they take it off the TTFT target."""
    minutes: int = 60
    """Minutes of arrival that are counted apart; later requests count to the last."""
    recorded: int = 0
    """Requests whose outcomes are kept one by one."""


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as the operator sees it."""

    index: int
    name: str
    """Its pod; no two instances of a run have the same."""
    role: Role
    ready: bool
    ready_since: float
    draining: bool
    load: int
    """Requests that hold a place in it."""
    running: int
    """Requests in its batch."""


class ScenarioPlant:
    """See the module. Times are seconds from the start of the run."""

    def __init__(self, spec: PlantSpec, counts: Counts) -> None:
        """`counts` serve from the start.

        Raises:
            PlantError: they are more than the spec has places for.
        """
        self.spec = spec
        self._cap = _power_of_two(spec.capacity)
        self._s = _arrays(spec, self._cap)
        self.counts = Counts(0, 0, 0)
        self.apply(counts, cold_start=0.0)
        self.run_until(0.0)

    # --- time ---------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return float(self._s.x[layout.X_NOW])

    def feed(self, arrivals: Arrivals) -> None:
        """Requests to come, in order of time; those of before must have arrived.

        Raises:
            PlantError: some of before have not arrived yet.
        """
        if self._s.n[layout.N_NEXT] < self._s.n[layout.N_ARRIVALS]:
            raise PlantError("requests of the last feed have not arrived yet")
        self._s = self._s._replace(
            arrival=_floats(arrivals.times), arriving=_ints(arrivals.tokens.reshape(-1))
        )
        self._s.n[layout.N_NEXT], self._s.n[layout.N_ARRIVALS] = 0, len(arrivals.times)

    def run_until(self, until: float) -> None:
        """Let virtual time pass."""
        while events.run(self._s, float(until)) == events.FULL:
            self._s = _with_more_records(self._s)

    # --- instances ----------------------------------------------------------------------------

    def apply(self, counts: Counts, cold_start: float) -> None:
        """Create what is missing, serving after `cold_start` seconds; drain the newest of the rest.

        Raises:
            PlantError: there is no place for so many.
        """
        if counts.groups > self.spec.groups or max(counts.prefill, counts.decode) > self._cap:
            raise PlantError(f"{counts}: at most {self.spec.groups} groups of {self._cap} a role")
        self.counts = counts
        for group in range(self.spec.groups):
            wanted = (counts.prefill, counts.decode) if group < counts.groups else (0, 0)
            for role, want in zip((0, 1), wanted, strict=True):
                self._resize(self._first(role, group), want, self.now + cold_start)

    def _resize(self, first: int, want: int, ready_at: float) -> None:
        live = [j for j in self._existing(first) if self._state(j) != layout.DRAINING]
        for j in sorted(live, key=self._serial)[want:]:
            events.drain(self._s, j)
        for _ in range(want - len(live)):
            events.create(self._s, self._place(first), ready_at)

    def _place(self, first: int) -> int:
        for j in range(first, first + self._cap):
            if self._state(j) == layout.ABSENT:
                return j
        raise PlantError(f"more than {self._cap} instances of a role at once, draining included")

    def fail(self, index: int, repaired_after: float) -> None:
        """Lose an instance; one in its place serves after so many seconds."""
        events.fail(self._s, index, self.now + repaired_after)

    def slow_down(self, index: int, factor: float) -> None:
        """Multiply all times of an instance by `factor` > 0, from its next batch on."""
        events.slow_down(self._s, index, float(factor))

    def limit_batches(self, most: int) -> None:
        """Let each decode run at most `most` requests, within its slots."""
        most = max(1, min(most, self.spec.profile.decode_slots))
        events.limit_batches(self._s, most, layout.K_ADMIT)

    def instances(self) -> Iterator[InstanceView]:
        """All that exist, prefills first."""
        for role in (0, 1):
            for group in range(self.spec.groups):
                for j in self._existing(self._first(role, group)):
                    yield self._view(j, "decode" if role else "prefill")

    def ready(self, role: Role) -> int:
        """Instances of a role that serve and are not draining."""
        return sum(i.ready and i.role == role for i in self.instances())

    def _view(self, j: int, role: Role) -> InstanceView:
        at = j * layout.J_INTS
        ints = self._s.ji
        running = ints[at + (layout.JI_RUNNING if role == "decode" else layout.JI_BUSY)]
        return InstanceView(
            index=j,
            name=f"{role}-{ints[at + layout.JI_SERIAL]}",
            role=role,
            ready=ints[at + layout.JI_STATE] == layout.READY,
            ready_since=float(self._s.jf[j * layout.J_FLOATS + layout.J_READY]),
            draining=ints[at + layout.JI_STATE] == layout.DRAINING,
            load=int(ints[at + layout.JI_LOAD]),
            running=int(running),
        )

    def _first(self, role: int, group: int) -> int:
        return (role * self.spec.groups + group) * self._cap

    def _existing(self, first: int) -> list[int]:
        places = range(first, first + self._cap)
        return [j for j in places if self._state(j) != layout.ABSENT]

    def _state(self, j: int) -> int:
        return int(self._s.ji[j * layout.J_INTS + layout.JI_STATE])

    def _serial(self, j: int) -> int:
        return int(self._s.ji[j * layout.J_INTS + layout.JI_SERIAL])

    # --- counters -----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the waiting room."""
        return int(self._s.n[layout.N_WAITING] + self._s.n[layout.N_ASIDE])

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and not ended."""
        return int(len(self._s.ri) // layout.R_INTS - self._s.n[layout.N_FREE])

    @property
    def instance_seconds(self) -> float:
        """Time of all instances that existed, starting and draining ones included."""
        since = self.now - self._s.x[layout.X_COUNTED_AT]
        return float(self._s.x[layout.X_DEVICE_SECONDS] + since * self._s.n[layout.N_ALIVE])

    def gateway(self) -> list[float]:
        """The gateway's counters, by `layout.G_*`."""
        return [float(value) for value in self._s.gateway]

    def engine(self, instance: InstanceView) -> list[float]:
        """An instance's counters by `layout.E_*`, with the steps that it has made until now."""
        j = instance.index
        first = j * layout.J_FLOATS + layout.J_COUNT
        found = [float(v) for v in self._s.jf[first : first + 8]]
        if instance.role == "prefill" or instance.running == 0:
            return found
        steps = events.steps_in_segment(self._s, j)
        context = self._s.jf[j * layout.J_FLOATS + layout.J_CONTEXT]
        found[layout.E_STEPS] += steps
        found[layout.E_STEP_SECONDS] += events.seconds_in_segment(self._s, j, steps)
        found[layout.E_STEP_REQUESTS] += steps * instance.running
        growth = instance.running * steps * (steps - 1) / 2
        found[layout.E_STEP_CONTEXT] += steps * context + growth
        return [float(value) for value in found]

    def minutes(self) -> NDArray[np.float64]:
        """Counts by minute of arrival, bucket of prompt length, and `layout.B_*`."""
        shape = (self.spec.minutes, layout.LENGTH_BUCKETS, layout.B_COLUMNS)
        return np.array(self._s.bins, dtype=np.float64).reshape(shape)

    def outcomes(self) -> NDArray[np.float64]:
        """A row by `layout.O_*` for each recorded request; zeros where it has not ended."""
        rows = np.array(self._s.outcomes, dtype=np.float64)
        return rows.reshape(self.spec.recorded, layout.O_COLUMNS)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _floats(values: ArrayLike) -> Floats:
    array = np.ascontiguousarray(values, dtype=np.float64)
    return cast(Floats, array if COMPILED else array.tolist())


def _ints(values: ArrayLike) -> Ints:
    array = np.ascontiguousarray(values, dtype=np.int64)
    return cast(Ints, array if COMPILED else array.tolist())


def _arrays(spec: PlantSpec, cap: int) -> Arrays:
    """State of a plant without instances and requests."""
    p, groups, records = spec.profile, spec.groups, 1024
    ring, tree = p.decode_slots + spec.prefetch, _power_of_two(groups)
    events_tree = _power_of_two(2 * groups * cap)
    places = max(2 * p.prefill_slots, ring + 2 * p.decode_slots)
    instances = np.zeros((2 * groups * cap, layout.J_INTS), dtype=np.int64)
    instances[:, [layout.JI_STUCK_HEAD, layout.JI_STUCK_TAIL]] = -1
    requests = np.zeros((records, layout.R_INTS), dtype=np.int64)
    requests[:, layout.RI_FREE] = np.arange(records)
    whole = np.zeros(layout.N_INTS, dtype=np.int64)
    whole[layout.N_FREE] = records
    return Arrays(
        cf=_floats([
            p.prefill.base, p.prefill.per_token, p.prefill.per_token_squared, p.decode.base,
            p.decode.per_request, p.decode.per_context_token, spec.slo.ttft, spec.slo.handoff,
            spec.slo.tpot, spec.transfer, spec.transfer_per_token, spec.safety, MINUTE,
        ]),
        ci=_ints([
            p.prefill_slots, p.decode_slots, p.decode_slots, spec.prefetch, groups, cap, tree,
            events_tree, 2 * records, spec.minutes, places,
        ]),
        x=_floats(np.zeros(layout.X_FLOATS)),
        n=_ints(whole),
        rf=_floats(np.zeros(records * layout.R_FLOATS)),
        ri=_ints(requests.reshape(-1)),
        jf=_floats(np.zeros(2 * groups * cap * layout.J_FLOATS)),
        ji=_ints(instances.reshape(-1)),
        lists=_ints(np.zeros(2 * groups * cap * places)),
        choice=_ints(np.full(2 * groups * 2 * cap + 2 * tree, layout.NOT_FREE)),
        events=_floats(np.full(2 * events_tree, layout.NEVER)),
        keys=_floats(np.zeros(4 * 2 * records)),
        values=_ints(np.zeros(2 * 4 * 2 * records)),
        gateway=_floats(np.zeros(layout.G_FLOATS)),
        bins=_floats(np.zeros(spec.minutes * layout.LENGTH_BUCKETS * layout.B_COLUMNS)),
        arrival=_floats([]),
        arriving=_ints([]),
        outcomes=_floats(np.zeros(spec.recorded * layout.O_COLUMNS)),
    )  # fmt: skip


def _with_more_records(s: Arrays) -> Arrays:
    """The same state with twice the room for requests in flight."""
    old = len(s.ri) // layout.R_INTS
    rows = np.array(s.ri, dtype=np.int64).reshape(old, layout.R_INTS)
    more = np.zeros((2 * old, layout.R_INTS), dtype=np.int64)
    more[:old] = rows
    free = s.n[layout.N_FREE]
    more[free : free + old, layout.RI_FREE] = np.arange(old, 2 * old)
    s.n[layout.N_FREE] = free + old
    places = s.ci[layout.K_HEAP]
    s.ci[layout.K_HEAP] = 2 * places
    keys = np.zeros((4, 2 * places))
    keys[:, :places] = np.array(s.keys).reshape(4, places)
    values = np.zeros((4, 4 * places), dtype=np.int64)
    values[:, : 2 * places] = np.array(s.values, dtype=np.int64).reshape(4, 2 * places)
    requests = np.zeros(2 * old * layout.R_FLOATS)
    requests[: old * layout.R_FLOATS] = s.rf
    return s._replace(
        ri=_ints(more.reshape(-1)),
        rf=_floats(requests),
        keys=_floats(keys.reshape(-1)),
        values=_ints(values.reshape(-1)),
    )
