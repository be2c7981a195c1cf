"""Waiting in front of n slots: the only queueing theory the model needs.

Two views of the same slots, both with Poisson arrivals and mean slot time T:

- `wait_exceeds` (Erlang-C, no request gives up) sizes: it never accepts load 1, and it reproduces
  the table of utilisations for P(wait > T) <= 1 % (0.17, 0.42, 0.64, 0.79, 0.94 at 2, 4, 8, 16, 64
  slots).
- `late_share` (M/M/n+D, requests leave at their deadline; Baccelli and Hebuterne 1981) predicts
  what is measured: gateways shed requests whose deadline passed, so it is right under overload.

Slot times are seldom exponential: the wait's decay rate is scaled by 2/(1 + cv^2), the
heavy-traffic law for M/G/n (Kingman), with cv the slot time's coefficient of variation.
"""

from __future__ import annotations

import math

MAX_SLOTS = 2000
"""More slots are computed as this many at the same utilisation: waiting is then overestimated
by a hair, and the work stays bounded."""


FLUID_SLOTS = 64
FLUID_LOAD = 1.5
"""From this many slots and this overload on, exactly the capacity is served (the error is below
0.02 without slack and below 1e-5 with a third of a slot time)."""


def inverse_erlang_b(slots: int, load: float) -> float:
    """1/B(slots, load): inverse blocking probability of `load` Erlangs on that many slots.

    `load` above 0; the result is 1 or more and is cut at 1e300.
    """
    inverse = 1.0
    for k in range(1, slots + 1):
        inverse = 1.0 + inverse * k / load
        if inverse > 1e300:
            return 1e300
    return inverse


def wait_exceeds(slots: int, load: float, slack: float, cv2: float = 1.0) -> float:
    """P(wait > slack) with `load` Erlangs on `slots`, by Erlang-C; 1 from load `slots` on.

    `slack` in units of the slot time, below 0 every request is late; `cv2` is the squared
    coefficient of variation of slot times.
    """
    slots, load = _bounded(slots, load)
    if load <= 0.0:
        return 0.0
    if load >= slots or slack < 0.0:
        return 1.0
    inverse_b = inverse_erlang_b(slots, load)
    rho = load / slots
    delayed = 1.0 / (inverse_b * (1.0 - rho) + rho)
    return delayed * math.exp(-(slots - load) * slack * 2.0 / (1.0 + cv2))


def late_share(slots: int, load: float, slack: float, cv2: float = 1.0) -> float:
    """Share of requests that wait longer than `slack` when those that do leave at that time.

    `load` in Erlangs on `slots`; `slack` in units of the slot time, negative slack means that every
    request is late; `cv2` is the squared coefficient of variation of slot times.
    """
    slots, load = _bounded(slots, load)
    if load <= 0.0:
        return 0.0
    if slack < 0.0:
        return 1.0
    if slots >= FLUID_SLOTS and load >= FLUID_LOAD * slots:
        return 1.0 - slots / load
    stretched = slack * 2.0 / (1.0 + cv2)
    exponent = (slots - load) * stretched
    decay = math.exp(-min(abs(exponent), 700.0))
    idle = inverse_erlang_b(slots - 1, load)
    # Every term is divided by the largest of them, so that no exponential overflows.
    if exponent >= 0.0:
        growth, tail = (1.0 - decay), decay
    else:
        growth, tail, idle = (1.0 - decay), 1.0, idle * decay
    gap = abs(slots - load)
    waiting = load * (growth / gap if gap * stretched > 1e-9 else stretched)
    late = load / slots * tail
    return late / (idle + waiting + late)


def _bounded(slots: int, load: float) -> tuple[int, float]:
    """At most MAX_SLOTS at the same utilisation."""
    if slots <= MAX_SLOTS:
        return slots, load
    return MAX_SLOTS, load * MAX_SLOTS / slots
