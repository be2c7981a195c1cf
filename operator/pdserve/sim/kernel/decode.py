"""Decode instances: reservation, KV transfer, and continuous batching between batch changes.

A running batch of B streams with C context tokens makes its k-th step from now in
`slow * (d + e*B + f*(C + (k-1)*B))` seconds, so k steps take a quadratic of k. Only boundaries at
which the batch changes are events: the step in which the first stream ends, or the end of the step
in which another request's KV has come. A request joins at the end of a step, never within one.
"""

from __future__ import annotations

import math

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.layout import (
    C_CONTEXT,
    C_HANDOFF,
    C_REQUEST,
    C_STEP,
    C_TRANSFER,
    C_TRANSFER_TOKEN,
    C_TTFT,
    DECODING,
    E_STEP_CONTEXT,
    E_STEP_REQUESTS,
    E_STEP_SECONDS,
    E_STEPS,
    E_TRANSFER,
    E_TRANSFERS,
    E_WAIT,
    J_AT,
    J_CONTEXT,
    J_COUNT,
    J_FLOATS,
    J_GROWTH,
    J_HOLD,
    J_INTS,
    J_SLOW,
    J_STEP,
    JI_HEAD,
    JI_LOAD,
    JI_QUEUED,
    JI_RUNNING,
    JI_STEPS,
    JI_STUCK_HEAD,
    JI_STUCK_TAIL,
    JI_TOKEN,
    K_ADMIT,
    K_BD,
    K_CAP,
    K_EVENT_TREE,
    K_GROUPS,
    K_HEAP,
    K_LIST,
    K_PREFETCH,
    N_STUCK,
    N_TRANSFERS,
    NEVER,
    NOT_FREE,
    PULLING,
    R_ARRIVED,
    R_COMPUTED,
    R_FIRST,
    R_FLOATS,
    R_INTS,
    R_SECOND,
    RI_BEFORE,
    RI_DECODE,
    RI_NEXT,
    RI_OUTPUT,
    RI_PREFILL,
    RI_PROMPT,
    RI_STATE,
    RI_VERSION,
    STUCK,
    X_HANDOFF,
    Arrays,
)
from pdserve.sim.kernel.places import (
    begin_pull,
    decode_tree,
    end_pull,
    group_of,
    offer,
    remove_if_drained,
)
from pdserve.sim.kernel.requests import complete
from pdserve.sim.kernel.trees import push, put_float, winner_int

HOLD_LEARN = 0.2
"""Share of the newest stream in the mean stay of a decode's streams."""
HANDOFF_LEARN = 0.1
"""Share of the newest request in the mean time of a handoff."""


@compiled
def hand_over(s: Arrays, r: int, now: float) -> None:
    """The KV of a computed prompt looks for the decode of its group with the most room."""
    group = group_of(s, s.ri[r * R_INTS + RI_PREFILL])
    tree, cap = decode_tree(s, group), s.ci[K_CAP]
    if s.choice[tree + 1] == NOT_FREE:
        _chain(s, r, group)
        return
    j = s.ci[K_GROUPS] * cap + group * cap + winner_int(s.choice, tree, cap)
    s.ri[r * R_INTS + RI_DECODE] = j
    s.ri[r * R_INTS + RI_STATE] = PULLING
    s.ji[j * J_INTS + JI_LOAD] += 1
    begin_pull(s, group)
    offer(s, j)
    source = s.ri[r * R_INTS + RI_PREFILL] * J_FLOATS + J_COUNT
    s.jf[source + E_WAIT] += now - s.rf[r * R_FLOATS + R_COMPUTED]
    seconds = transfer_seconds(s, r)
    push(s.keys, s.values, s.ci[K_HEAP], s.n[N_TRANSFERS], now + seconds, r,
         s.ri[r * R_INTS + RI_VERSION])  # fmt: skip
    s.n[N_TRANSFERS] += 1


@compiled
def transfer_seconds(s: Arrays, r: int) -> float:
    """Time in which a decode pulls the KV of a prompt."""
    return s.cf[C_TRANSFER] + s.cf[C_TRANSFER_TOKEN] * s.ri[r * R_INTS + RI_PROMPT]


@compiled
def _chain(s: Arrays, r: int, group: int) -> None:
    """KV without a decode waits in its prefill's slot, in order, until its handoff deadline."""
    first = group * s.ci[K_CAP] * J_INTS
    last = s.ji[first + JI_STUCK_TAIL]
    s.ri[r * R_INTS + RI_STATE] = STUCK
    s.ri[r * R_INTS + RI_NEXT] = -1
    s.ri[r * R_INTS + RI_BEFORE] = last
    if last >= 0:
        s.ri[last * R_INTS + RI_NEXT] = r
    else:
        s.ji[first + JI_STUCK_HEAD] = r
    s.ji[first + JI_STUCK_TAIL] = r
    due = s.rf[r * R_FLOATS + R_ARRIVED] + s.cf[C_TTFT]
    if due < s.rf[r * R_FLOATS + R_COMPUTED]:
        due = s.rf[r * R_FLOATS + R_COMPUTED]
    push(s.keys, s.values, 2 * s.ci[K_HEAP], s.n[N_STUCK], due + s.cf[C_HANDOFF], r,
         s.ri[r * R_INTS + RI_VERSION])  # fmt: skip
    s.n[N_STUCK] += 1


@compiled
def unchain(s: Arrays, r: int) -> None:
    """Take a request out of its group's chain of KV without a decode."""
    first = group_of(s, s.ri[r * R_INTS + RI_PREFILL]) * s.ci[K_CAP] * J_INTS
    before, after = s.ri[r * R_INTS + RI_BEFORE], s.ri[r * R_INTS + RI_NEXT]
    if before >= 0:
        s.ri[before * R_INTS + RI_NEXT] = after
    else:
        s.ji[first + JI_STUCK_HEAD] = after
    if after >= 0:
        s.ri[after * R_INTS + RI_BEFORE] = before
    else:
        s.ji[first + JI_STUCK_TAIL] = before


@compiled
def serve_chain(s: Arrays, group: int, now: float) -> None:
    """Decodes that have room again take KV that waits, the oldest first."""
    first = group * s.ci[K_CAP] * J_INTS
    tree = decode_tree(s, group)
    while s.ji[first + JI_STUCK_HEAD] >= 0 and s.choice[tree + 1] != NOT_FREE:
        r = s.ji[first + JI_STUCK_HEAD]
        unchain(s, r)
        hand_over(s, r, now)


@compiled
def pulled(s: Arrays, r: int, now: float) -> None:
    """A decode has a request's KV: token 1 goes out, the prefill's slot is free."""
    s.rf[r * R_FLOATS + R_FIRST] = now
    _learn_handoff(s, now - s.rf[r * R_FLOATS + R_COMPUTED])
    source = s.ri[r * R_INTS + RI_PREFILL]
    s.jf[source * J_FLOATS + J_COUNT + E_TRANSFER] += transfer_seconds(s, r)
    s.jf[source * J_FLOATS + J_COUNT + E_TRANSFERS] += 1.0
    s.ji[source * J_INTS + JI_LOAD] -= 1
    end_pull(s, group_of(s, source))
    offer(s, source)
    remove_if_drained(s, source, now)
    s.ri[r * R_INTS + RI_PREFILL] = -1
    s.ri[r * R_INTS + RI_STATE] = DECODING
    _enqueue(s, r, s.ri[r * R_INTS + RI_DECODE], now)


@compiled
def _learn_handoff(s: Arrays, seconds: float) -> None:
    """Note how long after its prefill a first token went out (`forwarding.deadline`)."""
    mean = s.x[X_HANDOFF]
    s.x[X_HANDOFF] = seconds if mean == 0.0 else mean + HANDOFF_LEARN * (seconds - mean)


@compiled
def _enqueue(s: Arrays, r: int, j: int, now: float) -> None:
    at = j * J_INTS
    ring = s.ci[K_BD] + s.ci[K_PREFETCH]
    place = (s.ji[at + JI_HEAD] + s.ji[at + JI_QUEUED]) % ring
    s.lists[j * s.ci[K_LIST] + place] = r
    s.ji[at + JI_QUEUED] += 1
    if s.ji[at + JI_RUNNING] == 0:
        _start_steps(s, j, now)
    elif s.ji[at + JI_RUNNING] < s.ci[K_ADMIT]:
        steps = _steps_until(s, j, now - s.jf[j * J_FLOATS + J_AT])
        if steps < s.ji[at + JI_STEPS]:
            s.ji[at + JI_STEPS] = steps
            put_float(s.events, s.ci[K_EVENT_TREE], j,
                      s.jf[j * J_FLOATS + J_AT] + seconds_of(s, j, steps))  # fmt: skip


@compiled
def seconds_of(s: Arrays, j: int, steps: int) -> float:
    """Seconds of the next so many steps of the running batch."""
    growth = s.jf[j * J_FLOATS + J_GROWTH]
    return steps * (s.jf[j * J_FLOATS + J_STEP] + growth * (steps - 1))


@compiled
def _steps_until(s: Arrays, j: int, seconds: float) -> int:
    """The least number of steps, 1 or more, that take at least so long."""
    growth = s.jf[j * J_FLOATS + J_GROWTH]
    step = s.jf[j * J_FLOATS + J_STEP]
    if growth > 0.0:
        half = (step - growth) / 2.0
        found = (math.sqrt(half * half + growth * seconds) - half) / growth
    else:
        found = seconds / step
    steps = int(found)
    if steps < 1:
        steps = 1
    while steps > 1 and seconds_of(s, j, steps - 1) >= seconds:
        steps -= 1
    while seconds_of(s, j, steps) < seconds:
        steps += 1
    return steps


@compiled
def steps_made(s: Arrays, j: int, now: float) -> int:
    """Whole steps of the running batch since its segment began."""
    if s.ji[j * J_INTS + JI_RUNNING] == 0:
        return 0
    seconds = now - s.jf[j * J_FLOATS + J_AT]
    steps = _steps_until(s, j, seconds)
    return steps if seconds_of(s, j, steps) <= seconds else steps - 1


@compiled
def _start_steps(s: Arrays, j: int, now: float) -> None:
    """Let queued requests join the batch, and plan the steps until it changes again."""
    at, base = j * J_INTS, j * s.ci[K_LIST]
    ring = s.ci[K_BD] + s.ci[K_PREFETCH]
    heap = base + ring
    joining = s.ci[K_ADMIT] - s.ji[at + JI_RUNNING]
    if joining > s.ji[at + JI_QUEUED]:
        joining = s.ji[at + JI_QUEUED]
    if joining < 0:
        joining = 0
    for k in range(joining):
        r = s.lists[base + (s.ji[at + JI_HEAD] + k) % ring]
        s.jf[j * J_FLOATS + J_CONTEXT] += s.ri[r * R_INTS + RI_PROMPT]
    running = s.ji[at + JI_RUNNING] + joining
    step = s.jf[j * J_FLOATS + J_SLOW] * (
        s.cf[C_STEP] + s.cf[C_REQUEST] * running
        + s.cf[C_CONTEXT] * s.jf[j * J_FLOATS + J_CONTEXT]
    )  # fmt: skip
    for k in range(joining):
        r = s.lists[base + (s.ji[at + JI_HEAD] + k) % ring]
        s.rf[r * R_FLOATS + R_SECOND] = now + step
        last = s.ji[at + JI_TOKEN] + s.ri[r * R_INTS + RI_OUTPUT] - 1
        _push_end(s, heap, s.ji[at + JI_RUNNING] + k, last, r)
    s.ji[at + JI_HEAD] = (s.ji[at + JI_HEAD] + joining) % ring
    s.ji[at + JI_QUEUED] -= joining
    s.ji[at + JI_RUNNING] = running
    s.jf[j * J_FLOATS + J_AT] = now
    s.jf[j * J_FLOATS + J_STEP] = step
    s.jf[j * J_FLOATS + J_GROWTH] = s.jf[j * J_FLOATS + J_SLOW] * s.cf[C_CONTEXT] * running / 2.0
    if running == 0:
        s.ji[at + JI_STEPS] = 0
        s.jf[j * J_FLOATS + J_CONTEXT] = 0.0
        put_float(s.events, s.ci[K_EVENT_TREE], j, NEVER)
        return
    s.ji[at + JI_STEPS] = s.lists[heap] - s.ji[at + JI_TOKEN]
    put_float(s.events, s.ci[K_EVENT_TREE], j, now + seconds_of(s, j, s.ji[at + JI_STEPS]))


@compiled
def end_steps(s: Arrays, j: int, now: float) -> None:
    """The planned steps were made: streams end, others join, the group's KV finds room."""
    at, counts = j * J_INTS, j * J_FLOATS + J_COUNT
    steps, running = s.ji[at + JI_STEPS], s.ji[at + JI_RUNNING]
    context = s.jf[j * J_FLOATS + J_CONTEXT]
    s.jf[counts + E_STEPS] += steps
    s.jf[counts + E_STEP_SECONDS] += now - s.jf[j * J_FLOATS + J_AT]
    s.jf[counts + E_STEP_REQUESTS] += steps * running
    s.jf[counts + E_STEP_CONTEXT] += steps * context + running * (steps * (steps - 1) / 2.0)
    s.ji[at + JI_TOKEN] += steps
    s.jf[j * J_FLOATS + J_CONTEXT] = context + steps * running
    heap = j * s.ci[K_LIST] + s.ci[K_BD] + s.ci[K_PREFETCH]
    stays = 0.0
    while s.ji[at + JI_RUNNING] > 0 and s.lists[heap] <= s.ji[at + JI_TOKEN]:
        r = s.lists[heap + 1]
        _pop_end(s, heap, s.ji[at + JI_RUNNING])
        s.ji[at + JI_RUNNING] -= 1
        s.ji[at + JI_LOAD] -= 1
        s.jf[j * J_FLOATS + J_CONTEXT] -= (
            s.ri[r * R_INTS + RI_PROMPT] + s.ri[r * R_INTS + RI_OUTPUT] - 1
        )
        stays += now - s.rf[r * R_FLOATS + R_FIRST]
        complete(s, r, now)
    if s.ji[at + JI_RUNNING] < running:
        _learn_hold(s, j, stays / (running - s.ji[at + JI_RUNNING]))
    _start_steps(s, j, now)
    offer(s, j)
    remove_if_drained(s, j, now)
    serve_chain(s, group_of(s, j), now)


@compiled
def _learn_hold(s: Arrays, j: int, seconds: float) -> None:
    """Note how long streams held their places, as gateways do (`forwarding.instance`)."""
    hold = s.jf[j * J_FLOATS + J_HOLD]
    s.jf[j * J_FLOATS + J_HOLD] = seconds if hold == 0.0 else hold + HOLD_LEARN * (seconds - hold)


@compiled
def _push_end(s: Arrays, heap: int, size: int, token: int, r: int) -> None:
    """Add a stream to a decode's heap of streams by last token."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if s.lists[heap + 2 * parent] <= token:
            break
        s.lists[heap + 2 * at] = s.lists[heap + 2 * parent]
        s.lists[heap + 2 * at + 1] = s.lists[heap + 2 * parent + 1]
        at = parent
    s.lists[heap + 2 * at] = token
    s.lists[heap + 2 * at + 1] = r


@compiled
def _pop_end(s: Arrays, heap: int, size: int) -> None:
    """Remove the stream that ended."""
    last = size - 1
    token, r = s.lists[heap + 2 * last], s.lists[heap + 2 * last + 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= last:
            break
        if child + 1 < last and s.lists[heap + 2 * child + 2] < s.lists[heap + 2 * child]:
            child += 1
        if token <= s.lists[heap + 2 * child]:
            break
        s.lists[heap + 2 * at] = s.lists[heap + 2 * child]
        s.lists[heap + 2 * at + 1] = s.lists[heap + 2 * child + 1]
        at = child
    s.lists[heap + 2 * at] = token
    s.lists[heap + 2 * at + 1] = r
