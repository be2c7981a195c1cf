"""Which instance takes the next request: keys of the choice trees, creation and removal."""

from __future__ import annotations

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.layout import (
    ABSENT,
    C_HANDOFF,
    DRAINING,
    J_FLOATS,
    J_HOLD,
    J_INTS,
    JI_BALANCE,
    JI_LOAD,
    JI_SHARE,
    JI_STATE,
    JI_STUCK_HEAD,
    K_ADMIT,
    K_BP,
    K_CAP,
    K_EVENT_TREE,
    K_GROUP_TREE,
    K_GROUPS,
    K_PREFETCH,
    LOAD_SHIFT,
    N_ALIVE,
    N_SEQ,
    NEVER,
    NOT_FREE,
    READY,
    X_COUNTED_AT,
    X_DEVICE_SECONDS,
    Arrays,
)
from pdserve.sim.kernel.trees import put_float, put_int

SURE_PLACES = 3.0
"""As `forwarding.instance` has it."""


@compiled
def prefill_tree(s: Arrays, group: int) -> int:
    """Where the tree of a group's prefills begins."""
    return group * 2 * s.ci[K_CAP]


@compiled
def decode_tree(s: Arrays, group: int) -> int:
    """Where the tree of a group's decodes begins."""
    return (s.ci[K_GROUPS] + group) * 2 * s.ci[K_CAP]


@compiled
def groups_tree(s: Arrays) -> int:
    """Where the tree of the groups begins."""
    return 2 * s.ci[K_GROUPS] * 2 * s.ci[K_CAP]


@compiled
def is_decode(s: Arrays, j: int) -> bool:
    """Whether the instance's number is one of a decode."""
    return j >= s.ci[K_GROUPS] * s.ci[K_CAP]


@compiled
def group_of(s: Arrays, j: int) -> int:
    """The P/D group of an instance."""
    return j // s.ci[K_CAP] % s.ci[K_GROUPS]


@compiled
def offer(s: Arrays, j: int) -> None:
    """Put the instance's load into the choice trees: a prefill's slots, a decode's credit."""
    group, cap = group_of(s, j), s.ci[K_CAP]
    decode = is_decode(s, j)
    most = s.ci[K_ADMIT] + s.ci[K_PREFETCH] if decode else s.ci[K_BP]
    load = s.ji[j * J_INTS + JI_LOAD]
    key = NOT_FREE
    if s.ji[j * J_INTS + JI_STATE] == READY and load < most:
        s.n[N_SEQ] += 1
        key = (load << LOAD_SHIFT) + s.n[N_SEQ]
    tree = decode_tree(s, group) if decode else prefill_tree(s, group)
    put_int(s.choice, tree, cap, j % cap, key)
    share = _credit(s, j) if decode else -load
    _balance(s, group, share - s.ji[j * J_INTS + JI_SHARE])
    s.ji[j * J_INTS + JI_SHARE] = share


@compiled
def _credit(s: Arrays, j: int) -> int:
    """Requests that a decode would take and begin within the handoff target.

    A place ahead of the slots does not count where its request might wait for longer
    (`forwarding.instance.Instance.credit`).
    """
    left = s.ci[K_ADMIT] + s.ci[K_PREFETCH] - s.ji[j * J_INTS + JI_LOAD]
    if s.ji[j * J_INTS + JI_STATE] != READY or left <= 0:
        return 0
    hold = s.jf[j * J_FLOATS + J_HOLD]
    if hold > 0.0:
        soon = int(s.cf[C_HANDOFF] * s.ci[K_ADMIT] / (SURE_PLACES * hold))
        left -= max(s.ci[K_PREFETCH] - soon, 0)
    return max(left, 0)


@compiled
def _balance(s: Arrays, group: int, change: int) -> None:
    """Change a group's balance; it is offered requests while that is above 0."""
    first = group * s.ci[K_CAP] * J_INTS
    s.ji[first + JI_BALANCE] += change
    best = s.choice[prefill_tree(s, group) + 1]
    if s.ji[first + JI_BALANCE] <= 0:
        best = NOT_FREE
    put_int(s.choice, groups_tree(s), s.ci[K_GROUP_TREE], group, best)


@compiled
def begin_pull(s: Arrays, group: int) -> None:
    """A request of the group has a decode's place while it still holds its prefill's slot."""
    _balance(s, group, 1)


@compiled
def end_pull(s: Arrays, group: int) -> None:
    """It holds only one of both."""
    _balance(s, group, -1)


@compiled
def settle(s: Arrays, now: float) -> None:
    """Count the time of all instances that exist up to now."""
    s.x[X_DEVICE_SECONDS] += (now - s.x[X_COUNTED_AT]) * s.n[N_ALIVE]
    s.x[X_COUNTED_AT] = now


@compiled
def remove_if_drained(s: Arrays, j: int, now: float) -> None:
    """A draining instance goes when its last request has left it."""
    at = j * J_INTS
    if s.ji[at + JI_STATE] == DRAINING and s.ji[at + JI_LOAD] == 0:
        settle(s, now)
        s.n[N_ALIVE] -= 1
        s.ji[at + JI_STATE] = ABSENT
        put_float(s.events, s.ci[K_EVENT_TREE], j, NEVER)


@compiled
def clear(s: Arrays, j: int) -> None:
    """Zero an instance's record, but for what is the group's."""
    for column in range(JI_STUCK_HEAD):
        s.ji[j * J_INTS + column] = 0
    for column in range(J_FLOATS):
        s.jf[j * J_FLOATS + column] = 0.0
