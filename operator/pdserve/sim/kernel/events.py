"""The event loop, and what the operator or a fault does to instances between two events."""

from __future__ import annotations

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.decode import (
    end_steps,
    hand_over,
    pulled,
    seconds_of,
    serve_chain,
    steps_made,
    unchain,
)
from pdserve.sim.kernel.layout import (
    A_CACHED,
    A_COLUMNS,
    A_OUTPUT,
    A_PROMPT,
    AWAY,
    C_BASE,
    C_SAFETY,
    C_SQUARED,
    C_TOKEN,
    C_TRANSFER,
    C_TRANSFER_TOKEN,
    C_TTFT,
    DECODING,
    DRAINING,
    EXPIRED,
    FAILED,
    G_ARRIVED,
    G_ARRIVED_CACHED,
    G_ARRIVED_PROMPT,
    G_INFEASIBLE,
    J_FLOATS,
    J_INTS,
    J_READY,
    J_SLOW,
    JI_LOAD,
    JI_SERIAL,
    JI_STATE,
    K_CAP,
    K_EVENT_TREE,
    K_GROUPS,
    K_HEAP,
    N_ALIVE,
    N_ARRIVALS,
    N_ASIDE,
    N_FREE,
    N_NEXT,
    N_REQUEST,
    N_SERIAL,
    N_STUCK,
    N_TRANSFERS,
    N_WAITING,
    NEVER,
    NOT_FREE,
    OVERLOAD,
    PULLING,
    R_ARRIVED,
    R_DEADLINE,
    R_FLOATS,
    R_INTS,
    READY,
    RI_CACHED,
    RI_DECODE,
    RI_FREE,
    RI_NUMBER,
    RI_OUTPUT,
    RI_PREFILL,
    RI_PROMPT,
    RI_STATE,
    RI_VERSION,
    STARTING,
    STUCK,
    WAITING,
    X_HANDOFF,
    X_NOW,
    Arrays,
)
from pdserve.sim.kernel.places import (
    clear,
    end_pull,
    group_of,
    groups_tree,
    is_decode,
    offer,
    prefill_tree,
    remove_if_drained,
    settle,
)
from pdserve.sim.kernel.prefill import dispatch, end_batch
from pdserve.sim.kernel.requests import count_infeasible, end
from pdserve.sim.kernel.trees import pop, push, put_float, winner_float

REISSUED = 1 << 40
"""Added to the version of a request that a lost instance held."""
DONE, FULL = 0, 1
"""What `run` returns: the time was reached; there is no record for the next request."""


@compiled
def run(s: Arrays, until: float) -> int:
    """Take events in order of time up to `until`; DONE or FULL.

    At one moment instances come first, then transfers, KV that gives up, arrivals, and requests
    whose time to be accepted has passed.
    """
    while True:
        step = s.events[1]
        transfer = s.keys[s.ci[K_HEAP]] if s.n[N_TRANSFERS] > 0 else NEVER
        stuck = s.keys[2 * s.ci[K_HEAP]] if s.n[N_STUCK] > 0 else NEVER
        waiting = s.keys[0] if s.n[N_WAITING] > 0 else NEVER
        aside = s.keys[3 * s.ci[K_HEAP]] if s.n[N_ASIDE] > 0 else NEVER
        arrival = s.arrival[s.n[N_NEXT]] if s.n[N_NEXT] < s.n[N_ARRIVALS] else NEVER
        first = min(step, transfer, stuck, waiting, arrival, aside)
        if first > until:
            s.x[X_NOW] = until
            return DONE
        s.x[X_NOW] = first
        if step == first:
            _instance_event(s, winner_float(s.events, s.ci[K_EVENT_TREE]), first)
        elif transfer == first:
            _end_transfer(s, first)
        elif stuck == first:
            _give_up(s, first)
        elif arrival == first:
            if _is_full(s):
                return FULL
            _arrive(s, first)
        elif waiting == first:
            _expire(s, 0, N_WAITING, first)
        else:
            _expire(s, 3 * s.ci[K_HEAP], N_ASIDE, first)


@compiled
def _is_full(s: Arrays) -> bool:
    """Whether another request finds no record, or may find no place in a heap."""
    records, places = len(s.ri) // R_INTS, s.ci[K_HEAP]
    return (
        s.n[N_FREE] == 0 or s.n[N_TRANSFERS] + records > places or s.n[N_STUCK] + records > places
    )


@compiled
def _instance_event(s: Arrays, j: int, now: float) -> None:
    if s.ji[j * J_INTS + JI_STATE] == STARTING:
        s.ji[j * J_INTS + JI_STATE] = READY
        put_float(s.events, s.ci[K_EVENT_TREE], j, NEVER)
        offer(s, j)
        serve_chain(s, group_of(s, j), now)
        dispatch(s, now)
    elif is_decode(s, j):
        end_steps(s, j, now)
        dispatch(s, now)
    else:
        end_batch(s, j, now)


@compiled
def _arrive(s: Arrays, now: float) -> None:
    """A request comes: 1 give it a record, 2 judge whether it is feasible, 3 let it wait."""
    s.n[N_FREE] -= 1
    r = s.ri[s.n[N_FREE] * R_INTS + RI_FREE]
    at, row = r * R_INTS, s.n[N_NEXT] * A_COLUMNS
    s.ri[at + RI_PROMPT] = s.arriving[row + A_PROMPT]
    s.ri[at + RI_CACHED] = s.arriving[row + A_CACHED]
    s.ri[at + RI_OUTPUT] = s.arriving[row + A_OUTPUT]
    s.ri[at + RI_NUMBER] = s.ri[at + RI_VERSION] = s.n[N_REQUEST]
    s.ri[at + RI_PREFILL] = s.ri[at + RI_DECODE] = -1
    s.n[N_NEXT] += 1
    s.n[N_REQUEST] += 1
    s.rf[r * R_FLOATS + R_ARRIVED] = now
    s.gateway[G_ARRIVED] += 1.0
    s.gateway[G_ARRIVED_PROMPT] += s.ri[at + RI_PROMPT]
    s.gateway[G_ARRIVED_CACHED] += s.ri[at + RI_CACHED]
    left = float(s.ri[at + RI_PROMPT] - s.ri[at + RI_CACHED])
    alone = s.cf[C_BASE] + s.cf[C_TOKEN] * left + s.cf[C_SQUARED] * (left * left)
    pull = s.cf[C_TRANSFER] + s.cf[C_TRANSFER_TOKEN] * s.ri[at + RI_PROMPT]
    if alone + pull > s.cf[C_TTFT]:
        s.gateway[G_INFEASIBLE] += 1.0
        count_infeasible(s, r)
    handoff = min(s.x[X_HANDOFF], s.cf[C_TTFT] / 2.0)
    deadline = now + s.cf[C_TTFT] - handoff - s.cf[C_SAFETY] * alone
    s.rf[r * R_FLOATS + R_DEADLINE] = deadline
    if deadline <= now:
        end(s, r, EXPIRED, now)
        return
    _wait(s, r)
    dispatch(s, now)


@compiled
def _wait(s: Arrays, r: int) -> None:
    s.ri[r * R_INTS + RI_STATE] = WAITING
    s.ri[r * R_INTS + RI_PREFILL] = s.ri[r * R_INTS + RI_DECODE] = -1
    push(s.keys, s.values, 0, s.n[N_WAITING], s.rf[r * R_FLOATS + R_DEADLINE], r,
         s.ri[r * R_INTS + RI_VERSION])  # fmt: skip
    s.n[N_WAITING] += 1


@compiled
def _expire(s: Arrays, heap: int, count: int, now: float) -> None:
    """The first waiting request's time has passed; the outcome says which role it waited for.

    `heap` and `count`: where the heap begins, and which of `n` has its size.
    """
    r = s.values[2 * heap]
    pop(s.keys, s.values, heap, s.n[count])
    s.n[count] -= 1
    outcome = EXPIRED
    if s.choice[groups_tree(s) + 1] == NOT_FREE:
        for group in range(s.ci[K_GROUPS]):
            if s.choice[prefill_tree(s, group) + 1] != NOT_FREE:
                outcome = OVERLOAD
    end(s, r, outcome, now)


@compiled
def _end_transfer(s: Arrays, now: float) -> None:
    place = s.ci[K_HEAP]
    r, version = s.values[2 * place], s.values[2 * place + 1]
    pop(s.keys, s.values, place, s.n[N_TRANSFERS])
    s.n[N_TRANSFERS] -= 1
    if s.ri[r * R_INTS + RI_STATE] == PULLING and s.ri[r * R_INTS + RI_VERSION] == version:
        pulled(s, r, now)
        dispatch(s, now)


@compiled
def _give_up(s: Arrays, now: float) -> None:
    """KV that no decode took until its handoff deadline is released."""
    place = 2 * s.ci[K_HEAP]
    r, version = s.values[2 * place], s.values[2 * place + 1]
    pop(s.keys, s.values, place, s.n[N_STUCK])
    s.n[N_STUCK] -= 1
    if s.ri[r * R_INTS + RI_STATE] != STUCK or s.ri[r * R_INTS + RI_VERSION] != version:
        return
    unchain(s, r)
    source = s.ri[r * R_INTS + RI_PREFILL]
    s.ji[source * J_INTS + JI_LOAD] -= 1
    offer(s, source)
    end(s, r, OVERLOAD, now)
    remove_if_drained(s, source, now)
    dispatch(s, now)


@compiled
def create(s: Arrays, j: int, ready_at: float) -> None:
    """Make an instance that serves from `ready_at` on; it takes devices at once."""
    now = s.x[X_NOW]
    settle(s, now)
    s.n[N_ALIVE] += 1
    _begin(s, j, ready_at)


@compiled
def _begin(s: Arrays, j: int, ready_at: float) -> None:
    clear(s, j)
    s.n[N_SERIAL] += 1
    s.ji[j * J_INTS + JI_SERIAL] = s.n[N_SERIAL]
    s.ji[j * J_INTS + JI_STATE] = STARTING
    s.jf[j * J_FLOATS + J_SLOW] = 1.0
    s.jf[j * J_FLOATS + J_READY] = ready_at
    put_float(s.events, s.ci[K_EVENT_TREE], j, ready_at)


@compiled
def drain(s: Arrays, j: int) -> None:
    """Take no more requests in; one that is starting or idle goes at once."""
    s.ji[j * J_INTS + JI_STATE] = DRAINING
    offer(s, j)
    remove_if_drained(s, j, s.x[X_NOW])


@compiled
def fail(s: Arrays, j: int, ready_at: float) -> None:
    """An instance is lost with all it holds, and one in its place serves from `ready_at` on.

    A prompt that a prefill held is sent to another while its time allows; KV that was being pulled
    by a lost decode is offered to another; streams that ran end as failed.
    """
    now = s.x[X_NOW]
    decode = is_decode(s, j)
    column = RI_DECODE if decode else RI_PREFILL
    s.ji[j * J_INTS + JI_STATE] = DRAINING  # takes nothing while its requests leave
    s.ji[j * J_INTS + JI_LOAD] = 0
    offer(s, j)
    for r in range(len(s.ri) // R_INTS):
        state = s.ri[r * R_INTS + RI_STATE]
        if state in (AWAY, WAITING) or s.ri[r * R_INTS + column] != j:
            continue
        if decode:
            _lose_decode(s, r, now)
        else:
            _lose_prefill(s, r, now)
    _begin(s, j, ready_at)
    dispatch(s, now)


@compiled
def _lose_decode(s: Arrays, r: int, now: float) -> None:
    s.ri[r * R_INTS + RI_VERSION] += REISSUED  # the transfer that was on its way means nothing now
    if s.ri[r * R_INTS + RI_STATE] == DECODING:
        end(s, r, FAILED, now)
    else:
        end_pull(s, group_of(s, s.ri[r * R_INTS + RI_PREFILL]))
        hand_over(s, r, now)


@compiled
def _lose_prefill(s: Arrays, r: int, now: float) -> None:
    s.ri[r * R_INTS + RI_VERSION] += REISSUED
    if s.ri[r * R_INTS + RI_STATE] == STUCK:
        unchain(s, r)
    if s.ri[r * R_INTS + RI_STATE] == PULLING:
        other = s.ri[r * R_INTS + RI_DECODE]
        s.ji[other * J_INTS + JI_LOAD] -= 1
        end_pull(s, group_of(s, other))
        offer(s, other)
        remove_if_drained(s, other, now)
    if s.rf[r * R_FLOATS + R_DEADLINE] <= now:
        end(s, r, EXPIRED, now)
    else:
        _wait(s, r)


@compiled
def slow_down(s: Arrays, j: int, factor: float) -> None:
    """Multiply the instance's times from its next batch or change of batch on."""
    s.jf[j * J_FLOATS + J_SLOW] = factor


@compiled
def steps_in_segment(s: Arrays, j: int) -> int:
    """Whole steps that a decode has made and not yet counted."""
    return steps_made(s, j, s.x[X_NOW])


@compiled
def seconds_in_segment(s: Arrays, j: int, steps: int) -> float:
    """Seconds that those steps took."""
    return seconds_of(s, j, steps)


@compiled
def limit_batches(s: Arrays, most: int, admit_column: int) -> None:
    """Let each decode run at most `most` requests from now on."""
    s.ci[admit_column] = most
    for j in range(s.ci[K_GROUPS] * s.ci[K_CAP], 2 * s.ci[K_GROUPS] * s.ci[K_CAP]):
        offer(s, j)
    for group in range(s.ci[K_GROUPS]):
        serve_chain(s, group, s.x[X_NOW])
    dispatch(s, s.x[X_NOW])
