"""Which role is short when requests miss their targets.

P/D-Serve section 3.3 reads it from prefill's share of a request's compute: compute up and share up
-> prefill; up and share down -> decode. Compute shares say nothing about queues, and a decode
shortage makes prefill *slots* look busy (they hold KV that is not fetched), so a role is not
named while the other role's wait dominates. The first rule that applies decides:

1. streams miss TPOT or handoff more than first tokens come late, or most late ones were turned
   away by full decodes -> decode;
2. KV waits for a decode longer than requests wait for prefill, or decode batches are full while
   prefill computes little -> decode (`kv_wait_seconds` is decode pressure, never prefill time);
3. compute shares against healthy times; "decode" is vetoed while decodes have room, since a first
   token can only be late for want of prefill or of a decode to take it;
4. decodes have room, or prefill computes most of the time -> prefill;
5. the role that the model sees nearer to its capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ratio.model import PerformanceModel
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, LoopMemory, Quantity, ScenarioSample, known
from pdserve.terms import Role

FULL = 0.85
"""Share of decode slots in use from which on a decode counts as full."""
BUSY = 0.7
"""Share of time computing from which on a prefill counts as busy."""
MATERIAL_WAIT = 0.25
"""A wait shorter than this share of prefill's compute is no shortage."""
CHANGED = 0.1
"""Relative change of compute or share that counts as one."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Per-request seconds and busy shares; None where not measured."""

    prefill_compute: float | None
    decode_compute: float | None
    prefill_wait: float | None
    decode_wait: float | None
    prefill_busy: float | None
    decode_full: float | None
    late_first: float | None
    """Offered requests whose first token came late or never."""
    late_streams: float | None
    """Requests with the first token in time that missed another target."""
    turned_away: float | None
    """Requests that no decode took in time."""

    @property
    def share(self) -> float | None:
        """Prefill's share of a request's compute, 0 to 1; None while it was not measured."""
        if self.prefill_compute is None or self.decode_compute is None:
            return None
        total = self.prefill_compute + self.decode_compute
        return self.prefill_compute / total if total > 0 else None

    @property
    def compute(self) -> float | None:
        """Compute seconds of a request over both roles; None while they were not measured."""
        if self.prefill_compute is None or self.decode_compute is None:
            return None
        return self.prefill_compute + self.decode_compute

    @property
    def decode_has_room(self) -> bool:
        """Whether decodes surely had free slots; KV may have waited for one all the same."""
        return self.decode_full is not None and self.decode_full < FULL

    @property
    def decode_waits_longer(self) -> bool:
        """Whether KV waiting for a decode dominates."""
        if self.decode_wait is None or self.prefill_compute is None:
            return False
        material = self.decode_wait > MATERIAL_WAIT * self.prefill_compute
        return material and self.decode_wait > (self.prefill_wait or 0.0)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The role that is short, and why in words."""

    role: Role
    why: str


def read_signals(sample: ScenarioSample, profile: PerformanceProfile | None) -> Signals:
    """Reduce a sample to what the rules look at."""
    shortest = sample.windows[0]
    pre, dec = sample.prefill, sample.decode
    prefill_compute = _per(pre.compute_seconds, pre.batches)
    step = _per(dec.step_seconds, dec.steps)
    output = _per(shortest.output_tokens, shortest.completed)
    decode_wait = _per(pre.kv_wait_seconds, pre.requests)
    transfer = _per(pre.kv_transfer_seconds, pre.kv_transfers)
    wait = None
    if known(sample.ttft_seconds) and prefill_compute is not None:
        served = prefill_compute + (decode_wait or 0.0) + (transfer or 0.0)
        wait = max(sample.ttft_seconds - served, 0.0)
    batch = _per(dec.step_requests, dec.steps)
    busy = _busy(dec.step_seconds, shortest.seconds, dec.instances)
    slots = profile.decode_slots if profile is not None else None
    return Signals(
        prefill_compute=prefill_compute,
        decode_compute=None if step is None or output is None else step * max(output - 1.0, 0.0),
        prefill_wait=wait,
        decode_wait=decode_wait,
        prefill_busy=_busy(pre.compute_seconds, shortest.seconds, pre.instances),
        decode_full=None if batch is None or busy is None or not slots else batch * busy / slots,
        late_first=_difference(shortest.offered, shortest.ttft_met),
        late_streams=_difference(shortest.ttft_met, shortest.met),
        turned_away=sample.decode_overload if known(sample.decode_overload) else None,
    )


def bottleneck(
    signals: Signals, memory: LoopMemory, model: PerformanceModel | None, current: Counts
) -> Bottleneck:
    """The role to grow and why: the first that applies of the module's rules 1-5.

    `model` is None before anything is known of the engine; then only what was measured counts.
    """
    streams, first = signals.late_streams, signals.late_first
    if streams is not None and first is not None and streams > first:
        return Bottleneck(
            "decode", f"{streams:.0f} streams missed TPOT or handoff, {first:.0f} TTFT"
        )
    if signals.turned_away and signals.turned_away > (first or 0.0) / 2:
        return Bottleneck("decode", f"{signals.turned_away:.0f} requests found no decode in time")
    if signals.decode_waits_longer:
        return Bottleneck(
            "decode", f"KV waited {signals.decode_wait:.2f} s per request for a decode"
        )
    full, busy = signals.decode_full, signals.prefill_busy
    if full is not None and busy is not None and full >= FULL and busy < BUSY:
        return Bottleneck("decode", f"decode slots {full:.0%} full, prefill computing {busy:.0%}")
    by_share = _by_shares(signals, memory)
    if by_share is not None:
        return by_share
    if signals.decode_has_room:
        return Bottleneck(
            "prefill", f"first tokens came late while decode slots were {full:.0%} full"
        )
    if busy is not None and busy >= BUSY:
        return Bottleneck("prefill", f"prefill computing {busy:.0%} of the time")
    return _by_model(model, current)


def _by_shares(signals: Signals, memory: LoopMemory) -> Bottleneck | None:
    """Rule 3, with its veto."""
    share, compute = signals.share, signals.compute
    if share is None or compute is None or not memory.base_share or not memory.base_compute:
        return None
    moved = share / memory.base_share - 1.0
    if compute < memory.base_compute * (1.0 + CHANGED) or abs(moved) < CHANGED:
        return None
    what = f"compute per request {compute / memory.base_compute - 1.0:+.0%}, prefill's share"
    if moved > 0:
        return Bottleneck("prefill", f"{what} {moved:+.0%}")
    if signals.decode_has_room:
        return None  # vetoed: what is late waits for prefill, not for decode
    return Bottleneck("decode", f"{what} {moved:+.0%}")


def _by_model(model: PerformanceModel | None, current: Counts) -> Bottleneck:
    if model is None:
        return Bottleneck("prefill", "first tokens came late and nothing points to decode")
    prefill = model.prefill.utilisation(current.total("prefill"), model.felt("prefill"))
    decode = model.decode.utilisation(current.total("decode"), model.felt("decode"))
    role: Role = "prefill" if prefill >= decode else "decode"
    return Bottleneck(role, f"predicted load prefill {prefill:.0%}, decode {decode:.0%}")


def _per(total: Quantity, count: Quantity) -> float | None:
    return total / count if known(total) and known(count) and count > 0 else None


def _busy(seconds: Quantity, window: float, instances: int) -> float | None:
    return seconds / (window * instances) if known(seconds) and instances else None


def _difference(more: Quantity, less: Quantity) -> float | None:
    return max(more - less, 0.0) if known(more) and known(less) else None
