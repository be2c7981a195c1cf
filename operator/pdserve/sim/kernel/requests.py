"""How requests end, and what is counted then: the gateway's counters and the minutes of arrival."""

from __future__ import annotations

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.layout import (
    AWAY,
    B_COLUMNS,
    B_EXPIRED,
    B_FAILED,
    B_INFEASIBLE,
    B_MET,
    B_OFFERED,
    B_OVERLOAD,
    B_TTFT,
    B_TTFT_MET,
    BUCKETS,
    C_BIN,
    C_HANDOFF,
    C_TPOT,
    C_TTFT,
    COMPLETED,
    EXPIRED,
    FIRST_LENGTH,
    G_CACHED,
    G_COMPLETED,
    G_EXPIRED,
    G_FAILED,
    G_HANDOFF_MET,
    G_MET,
    G_OFFERED,
    G_OUTPUT,
    G_OVERLOAD,
    G_PROMPT,
    G_TPOT_BUCKETS,
    G_TPOT_MET,
    G_TTFT,
    G_TTFT_BUCKETS,
    G_TTFT_COUNT,
    G_TTFT_MET,
    K_BINS,
    LENGTH_BUCKETS,
    N_FREE,
    O_ARRIVED,
    O_COLUMNS,
    O_FIRST,
    O_LAST,
    O_OUTCOME,
    O_SECOND,
    OVERLOAD,
    R_ARRIVED,
    R_FIRST,
    R_FLOATS,
    R_INTS,
    R_SECOND,
    RI_CACHED,
    RI_FREE,
    RI_NUMBER,
    RI_OUTPUT,
    RI_PROMPT,
    RI_STATE,
    Arrays,
)


@compiled
def bin_of(s: Arrays, r: int) -> int:
    """First place in `bins` of a request's minute of arrival and bucket of prompt length."""
    minute = int(s.rf[r * R_FLOATS + R_ARRIVED] / s.cf[C_BIN])
    if minute >= s.ci[K_BINS]:
        minute = s.ci[K_BINS] - 1
    bucket = 0
    most = FIRST_LENGTH
    prompt = s.ri[r * R_INTS + RI_PROMPT]
    while prompt >= most and bucket < LENGTH_BUCKETS - 1:
        bucket += 1
        most *= 2
    return (minute * LENGTH_BUCKETS + bucket) * B_COLUMNS


@compiled
def count_infeasible(s: Arrays, r: int) -> None:
    """Note that no idle instance could serve the request in time."""
    s.bins[bin_of(s, r) + B_INFEASIBLE] += 1.0


@compiled
def _counted(s: Arrays, first: int, value: float, target: float) -> None:
    """Put a value into the histogram that begins at `first`."""
    bucket = int(10.0 * value / target) if value < 1e6 * target else BUCKETS - 1
    s.gateway[first + (bucket if bucket < BUCKETS else BUCKETS - 1)] += 1.0


@compiled
def end(s: Arrays, r: int, outcome: int, now: float) -> None:
    """A request ends unserved: expired, without a decode, or failed."""
    place = bin_of(s, r)
    s.gateway[G_OFFERED] += 1.0
    s.bins[place + B_OFFERED] += 1.0
    if outcome == EXPIRED:
        s.gateway[G_EXPIRED] += 1.0
        s.bins[place + B_EXPIRED] += 1.0
    elif outcome == OVERLOAD:
        s.gateway[G_OVERLOAD] += 1.0
        s.bins[place + B_OVERLOAD] += 1.0
    else:
        s.gateway[G_FAILED] += 1.0
        s.bins[place + B_FAILED] += 1.0
    _forget(s, r, outcome, now)


@compiled
def complete(s: Arrays, r: int, now: float) -> None:
    """A request's last token was made: judge it by its three targets."""
    at = r * R_FLOATS
    output = s.ri[r * R_INTS + RI_OUTPUT]
    ttft = s.rf[at + R_FIRST] - s.rf[at + R_ARRIVED]
    handoff = s.rf[at + R_SECOND] - s.rf[at + R_FIRST]
    tpot = (now - s.rf[at + R_SECOND]) / (output - 2) if output > 2 else 0.0
    place = bin_of(s, r)
    g = s.gateway
    g[G_OFFERED] += 1.0
    g[G_COMPLETED] += 1.0
    g[G_PROMPT] += s.ri[r * R_INTS + RI_PROMPT]
    g[G_CACHED] += s.ri[r * R_INTS + RI_CACHED]
    g[G_OUTPUT] += output
    g[G_TTFT] += ttft
    g[G_TTFT_COUNT] += 1.0
    _counted(s, G_TTFT_BUCKETS, ttft, s.cf[C_TTFT])
    _counted(s, G_TPOT_BUCKETS, tpot, s.cf[C_TPOT])
    s.bins[place + B_OFFERED] += 1.0
    s.bins[place + B_TTFT] += ttft
    met = 0
    if ttft <= s.cf[C_TTFT]:
        met += 1
        g[G_TTFT_MET] += 1.0
        s.bins[place + B_TTFT_MET] += 1.0
    if handoff <= s.cf[C_HANDOFF]:
        met += 1
        g[G_HANDOFF_MET] += 1.0
    if tpot <= s.cf[C_TPOT]:
        met += 1
        g[G_TPOT_MET] += 1.0
    if met == 3:
        g[G_MET] += 1.0
        s.bins[place + B_MET] += 1.0
    _forget(s, r, COMPLETED, now)


@compiled
def _forget(s: Arrays, r: int, outcome: int, now: float) -> None:
    """Record the outcome where outcomes are kept, and give the request's record back."""
    row = s.ri[r * R_INTS + RI_NUMBER] * O_COLUMNS
    if row + O_LAST < len(s.outcomes):
        s.outcomes[row + O_OUTCOME] += outcome
        s.outcomes[row + O_ARRIVED] = s.rf[r * R_FLOATS + R_ARRIVED]
        if outcome == COMPLETED:
            s.outcomes[row + O_FIRST] = s.rf[r * R_FLOATS + R_FIRST]
            s.outcomes[row + O_SECOND] = s.rf[r * R_FLOATS + R_SECOND]
        s.outcomes[row + O_LAST] = now
    s.ri[r * R_INTS + RI_STATE] = AWAY
    s.ri[s.n[N_FREE] * R_INTS + RI_FREE] = r
    s.n[N_FREE] += 1
