"""Where each value lies in the plant's flat arrays.

Records of requests and instances are rows of a few named columns; `request * R_FLOATS + R_ARRIVED`
is where a request's arrival time lies. Instances of both roles share one numbering: prefill `p` of
P/D group `g` is `g * CAP + p`, and decodes follow behind all prefills.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final, NamedTuple

Floats = MutableSequence[float]
Ints = MutableSequence[int]


class Arrays(NamedTuple):
    """All state of one plant."""

    cf: Floats
    """Constants in seconds and the like: C_*."""
    ci: Ints
    """Whole constants: K_*."""
    x: Floats
    """Running values: X_*."""
    n: Ints
    """Running whole values: N_*."""
    rf: Floats
    """Requests in flight: R_*, R_FLOATS each."""
    ri: Ints
    """Likewise: RI_*, R_INTS each."""
    jf: Floats
    """Instances: J_*, J_FLOATS each."""
    ji: Ints
    """Likewise: JI_*, J_INTS each."""
    lists: Ints
    """Per instance, LISTS(b_p, b_d) places: requests pending and computing, or queued and
    running."""
    choice: Ints
    """Tournament trees of instances by load: of each group's prefills, of each group's decodes,
    of the groups."""
    events: Floats
    """Tournament tree of the instances' next event times."""
    keys: Floats
    """Heaps by time: waiting room, transfers, KV without a decode, requests that were refused."""
    values: Ints
    """Requests in those heaps, and the version under which each was put there."""
    gateway: Floats
    """Counters: G_*, then buckets of TTFT and of TPOT."""
    bins: Floats
    """Per minute of arrival and bucket of prompt length: B_*, B_COLUMNS each."""
    arrival: Floats
    """Times of the requests to come."""
    arriving: Ints
    """Their prompt, cached and output tokens: A_COLUMNS each."""
    outcomes: Floats
    """Per request, where each is recorded: O_*, O_COLUMNS each; else empty."""


NEVER: Final = 1e300
NOT_FREE: Final = 1 << 62
"""Key of an instance that takes nothing."""
LOAD_SHIFT: Final = 40
"""A key is the load, then the order of the last change: among equals, the one left longest."""

# constants: seconds of T_p, of a step, targets
C_BASE, C_TOKEN, C_SQUARED, C_STEP, C_REQUEST, C_CONTEXT = 0, 1, 2, 3, 4, 5
C_TTFT, C_HANDOFF, C_TPOT, C_TRANSFER, C_TRANSFER_TOKEN, C_SAFETY, C_BIN = 6, 7, 8, 9, 10, 11, 12
C_FLOATS: Final = 13
K_BP, K_BD, K_ADMIT, K_PREFETCH, K_GROUPS, K_CAP, K_GROUP_TREE, K_EVENT_TREE = range(8)
"""Slots of each role; requests that a decode runs at most, and pulls ahead of them; P/D groups,
places for instances of one role in each, leaves of the two trees over all of them."""
K_HEAP, K_BINS, K_LIST = 8, 9, 10
"""Entries of a heap; minutes that are counted; places of an instance in `lists`."""
K_INTS: Final = 11

X_NOW, X_DEVICE_SECONDS, X_COUNTED_AT, X_HANDOFF = 0, 1, 2, 3
"""X_HANDOFF: seconds from the end of a prefill to the first token, a mean of late; 0: none yet."""
X_FLOATS: Final = 4
N_FREE, N_SEQ, N_WAITING, N_TRANSFERS, N_STUCK, N_NEXT, N_ARRIVALS = 0, 1, 2, 3, 4, 5, 6
"""Free request records, last sequence number, sizes of the heaps, next arrival, arrivals known."""
N_ALIVE, N_REQUEST, N_SERIAL, N_ASIDE = 7, 8, 9, 10
"""Instances that exist, requests that arrived, instances ever made; size of the heap of requests
that every prefill refused."""
N_INTS: Final = 11

R_ARRIVED, R_DEADLINE, R_COMPUTED, R_FIRST, R_SECOND = 0, 1, 2, 3, 4
R_FLOATS: Final = 5
RI_PROMPT, RI_CACHED, RI_OUTPUT, RI_PREFILL, RI_DECODE, RI_STATE = 0, 1, 2, 3, 4, 5
RI_VERSION, RI_NEXT, RI_BEFORE, RI_NUMBER, RI_FREE = 6, 7, 8, 9, 10
"""RI_VERSION tells a record's users apart; RI_NEXT and RI_BEFORE chain KV without a decode;
RI_FREE is the stack of free records."""
R_INTS: Final = 11

# states of a request
AWAY, WAITING, PREFILLING, STUCK, PULLING, DECODING = 0, 1, 2, 3, 4, 5

J_AT, J_STEP, J_CONTEXT, J_SLOW, J_READY, J_GROWTH, J_HOLD, J_TOKENS, J_SQUARED = range(9)
"""Start of the batch or of the segment of steps, seconds of its first step, context tokens then,
factor on all times, since when it serves, half of what
each step takes longer than the one before, mean stay of a stream in a decode; tokens that wait for
the next batch of a prefill, and the sum of their squares."""
J_COUNT = 9
"""First of the instance's counters: E_*."""
J_FLOATS: Final = 17
# counters of a prefill, of a decode
E_BATCHES, E_REQUESTS, E_COMPUTE, E_TOKENS, E_SQUARED, E_WAIT, E_TRANSFER, E_TRANSFERS = range(8)
E_STEPS, E_STEP_SECONDS, E_STEP_REQUESTS, E_STEP_CONTEXT = range(4)

JI_STATE, JI_LOAD, JI_BUSY, JI_QUEUED, JI_RUNNING, JI_HEAD, JI_TOKEN, JI_STEPS, JI_SERIAL = range(9)
"""JI_LOAD: requests that hold a place. JI_BUSY: requests of the batch that computes (prefill).
JI_QUEUED: waiting for the next batch, or pulled and not yet running. JI_HEAD: first of the queue
(decode). JI_TOKEN: steps made since the start. JI_STEPS: steps until the next event. JI_SERIAL:
names the instance for as long as it lives."""
JI_STUCK_HEAD, JI_STUCK_TAIL, JI_BALANCE, JI_SHARE = 9, 10, 11, 12
"""Of the first prefill of a group alone: the group's KV without a decode, and its balance: decode
credits less requests in prefills that no decode is pulling. JI_SHARE: the instance's part of it."""
J_INTS: Final = 13

# states of an instance
ABSENT, STARTING, READY, DRAINING = 0, 1, 2, 3

G_OFFERED, G_MET, G_TTFT_MET, G_COMPLETED, G_PROMPT, G_OUTPUT, G_CACHED = range(7)
G_EXPIRED, G_OVERLOAD, G_FAILED, G_TTFT, G_TTFT_COUNT, G_HANDOFF_MET, G_TPOT_MET = range(7, 14)
G_ARRIVED, G_ARRIVED_PROMPT, G_ARRIVED_CACHED, G_INFEASIBLE = range(14, 18)
"""Counted at arrival; G_INFEASIBLE: those that no instance could serve in time."""
G_TTFT_BUCKETS: Final = 18
BUCKETS: Final = 24
"""Buckets of a histogram, each a tenth of the target wide; the last one has the rest."""
G_TPOT_BUCKETS: Final = G_TTFT_BUCKETS + BUCKETS
G_FLOATS: Final = G_TPOT_BUCKETS + BUCKETS

B_OFFERED, B_INFEASIBLE, B_MET, B_TTFT_MET, B_EXPIRED, B_OVERLOAD, B_FAILED, B_TTFT = range(8)
B_COLUMNS: Final = 8
LENGTH_BUCKETS: Final = 6
FIRST_LENGTH: Final = 512
"""Prompt tokens below which a request is in the first bucket; each next is twice as wide."""

A_PROMPT, A_CACHED, A_OUTPUT = 0, 1, 2
A_COLUMNS: Final = 3

O_OUTCOME, O_ARRIVED, O_FIRST, O_SECOND, O_LAST = 0, 1, 2, 3, 4
O_COLUMNS: Final = 5
# outcomes
COMPLETED, EXPIRED, OVERLOAD, FAILED = 1, 2, 3, 4
