"""Prefill instances: slots, batches, and the waiting room in front of them."""

from __future__ import annotations

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.decode import hand_over
from pdserve.sim.kernel.layout import (
    C_BASE,
    C_SAFETY,
    C_SQUARED,
    C_TOKEN,
    E_BATCHES,
    E_COMPUTE,
    E_REQUESTS,
    E_SQUARED,
    E_TOKENS,
    J_AT,
    J_COUNT,
    J_FLOATS,
    J_INTS,
    J_SLOW,
    J_SQUARED,
    J_TOKENS,
    JI_BUSY,
    JI_LOAD,
    JI_QUEUED,
    K_BP,
    K_CAP,
    K_EVENT_TREE,
    K_GROUP_TREE,
    K_HEAP,
    K_LIST,
    N_ASIDE,
    N_WAITING,
    NEVER,
    NOT_FREE,
    PREFILLING,
    R_COMPUTED,
    R_DEADLINE,
    R_FIRST,
    R_FLOATS,
    R_INTS,
    R_SECOND,
    RI_CACHED,
    RI_OUTPUT,
    RI_PREFILL,
    RI_PROMPT,
    RI_STATE,
    RI_VERSION,
    Arrays,
)
from pdserve.sim.kernel.places import groups_tree, offer, prefill_tree, remove_if_drained
from pdserve.sim.kernel.requests import complete
from pdserve.sim.kernel.trees import pop, push, put_float, winner_int


@compiled
def dispatch(s: Arrays, now: float) -> None:
    """Give waiting requests, the earliest deadline first, to free prefills.

    A group without decode credit is offered none; among its prefills the one with the fewest
    requests takes it.
    """
    while s.n[N_WAITING] > 0 and s.choice[groups_tree(s) + 1] != NOT_FREE:
        group = winner_int(s.choice, groups_tree(s), s.ci[K_GROUP_TREE])
        r = s.values[0]
        pop(s.keys, s.values, 0, s.n[N_WAITING])
        s.n[N_WAITING] -= 1
        j = _taker(s, r, group, now)
        if j >= 0:
            _accept(s, r, j, now)
        else:
            push(s.keys, s.values, 3 * s.ci[K_HEAP], s.n[N_ASIDE], s.rf[r * R_FLOATS + R_DEADLINE],
                 r, s.ri[r * R_INTS + RI_VERSION])  # fmt: skip
            s.n[N_ASIDE] += 1


@compiled
def _taker(s: Arrays, r: int, group: int, now: float) -> int:
    """The prefill that takes a request: the best one, else the first that can compute it in time.

    An engine refuses a prompt that it could not compute within its TTFT, less what the handoff
    takes, or that would make one late which it accepted before; the batch that runs and those that
    wait for the next one counted. -1: all that have a slot refuse.
    """
    cap = s.ci[K_CAP]
    j = group * cap + winner_int(s.choice, prefill_tree(s, group), cap)
    left = float(s.ri[r * R_INTS + RI_PROMPT] - s.ri[r * R_INTS + RI_CACHED])
    due = _due(s, r)
    if _done_at(s, j, left, now) <= min(due, _first_due(s, j)):
        return j
    best, best_at = -1, due
    for leaf in range(cap):
        if s.choice[prefill_tree(s, group) + cap + leaf] != NOT_FREE:
            j = group * cap + leaf
            at = _done_at(s, j, left, now)
            if at <= min(best_at, _first_due(s, j)) and (best < 0 or at < best_at):
                best, best_at = j, at
    return best


@compiled
def _due(s: Arrays, r: int) -> float:
    """When a request's prompt must have been computed."""
    left = float(s.ri[r * R_INTS + RI_PROMPT] - s.ri[r * R_INTS + RI_CACHED])
    alone = s.cf[C_BASE] + s.cf[C_TOKEN] * left + s.cf[C_SQUARED] * (left * left)
    return s.rf[r * R_FLOATS + R_DEADLINE] + s.cf[C_SAFETY] * alone


@compiled
def _first_due(s: Arrays, j: int) -> float:
    """The earliest such time of the requests that wait for a prefill's next batch."""
    first = NEVER
    for k in range(s.ji[j * J_INTS + JI_QUEUED]):
        first = min(first, _due(s, s.lists[j * s.ci[K_LIST] + k]))
    return first


@compiled
def _done_at(s: Arrays, j: int, left: float, now: float) -> float:
    """When a prefill would have computed so many more tokens of one prompt."""
    begins = s.events[s.ci[K_EVENT_TREE] + j] if s.ji[j * J_INTS + JI_BUSY] > 0 else now
    at = j * J_FLOATS
    tokens, squared = s.jf[at + J_TOKENS] + left, s.jf[at + J_SQUARED] + left * left
    return begins + s.jf[at + J_SLOW] * (
        s.cf[C_BASE] + s.cf[C_TOKEN] * tokens + s.cf[C_SQUARED] * squared
    )


@compiled
def _ask_again(s: Arrays) -> None:
    """Requests that all prefills refused may ask again, now that a batch ended."""
    while s.n[N_ASIDE] > 0:
        place = 3 * s.ci[K_HEAP]
        r, version = s.values[2 * place], s.values[2 * place + 1]
        push(s.keys, s.values, 0, s.n[N_WAITING], s.keys[place], r, version)
        pop(s.keys, s.values, place, s.n[N_ASIDE])
        s.n[N_WAITING] += 1
        s.n[N_ASIDE] -= 1


@compiled
def _accept(s: Arrays, r: int, j: int, now: float) -> None:
    at = j * J_INTS
    s.ri[r * R_INTS + RI_PREFILL] = j
    s.ri[r * R_INTS + RI_STATE] = PREFILLING
    s.lists[j * s.ci[K_LIST] + s.ji[at + JI_QUEUED]] = r
    s.ji[at + JI_QUEUED] += 1
    s.ji[at + JI_LOAD] += 1
    left = float(s.ri[r * R_INTS + RI_PROMPT] - s.ri[r * R_INTS + RI_CACHED])
    s.jf[j * J_FLOATS + J_TOKENS] += left
    s.jf[j * J_FLOATS + J_SQUARED] += left * left
    offer(s, j)
    if s.ji[at + JI_BUSY] == 0:
        start_batch(s, j, now)


@compiled
def start_batch(s: Arrays, j: int, now: float) -> None:
    """Compute what was accepted: `T_p = a + b*sum(L) + c*sum(L^2)` from now on."""
    at, base = j * J_INTS, j * s.ci[K_LIST]
    size = s.ji[at + JI_QUEUED]
    for k in range(size):
        s.lists[base + s.ci[K_BP] + k] = s.lists[base + k]
    tokens, squared = s.jf[j * J_FLOATS + J_TOKENS], s.jf[j * J_FLOATS + J_SQUARED]
    s.jf[j * J_FLOATS + J_TOKENS] = s.jf[j * J_FLOATS + J_SQUARED] = 0.0
    s.ji[at + JI_BUSY], s.ji[at + JI_QUEUED] = size, 0
    seconds = s.jf[j * J_FLOATS + J_SLOW] * (
        s.cf[C_BASE] + s.cf[C_TOKEN] * tokens + s.cf[C_SQUARED] * squared
    )
    s.jf[j * J_FLOATS + J_AT] = now
    put_float(s.events, s.ci[K_EVENT_TREE], j, now + seconds)


@compiled
def end_batch(s: Arrays, j: int, now: float) -> None:
    """A batch was computed: each request looks for a decode; the next batch begins."""
    at, base, counts = j * J_INTS, j * s.ci[K_LIST] + s.ci[K_BP], j * J_FLOATS + J_COUNT
    size = s.ji[at + JI_BUSY]
    put_float(s.events, s.ci[K_EVENT_TREE], j, NEVER)
    for k in range(size):
        r = s.lists[base + k]
        left = float(s.ri[r * R_INTS + RI_PROMPT] - s.ri[r * R_INTS + RI_CACHED])
        s.jf[counts + E_TOKENS] += left
        s.jf[counts + E_SQUARED] += left * left
        s.rf[r * R_FLOATS + R_COMPUTED] = now
        if s.ri[r * R_INTS + RI_OUTPUT] > 1:
            hand_over(s, r, now)
        else:
            s.rf[r * R_FLOATS + R_FIRST] = s.rf[r * R_FLOATS + R_SECOND] = now
            s.ji[at + JI_LOAD] -= 1
            complete(s, r, now)
    s.jf[counts + E_BATCHES] += 1.0
    s.jf[counts + E_REQUESTS] += size
    s.jf[counts + E_COMPUTE] += now - s.jf[j * J_FLOATS + J_AT]
    s.ji[at + JI_BUSY] = 0
    if s.ji[at + JI_QUEUED] > 0:
        start_batch(s, j, now)
    offer(s, j)
    remove_if_drained(s, j, now)
    _ask_again(s)
    dispatch(s, now)
