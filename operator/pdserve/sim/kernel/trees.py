"""Tournament trees and binary heaps in flat arrays.

A tree of `size` leaves (a power of two) takes `2 * size` places from `offset` on: place 1 is the
root, and leaf `i` is at `size + i`. The root holds the least value; `winner` walks down to the
lowest leaf that has it.
"""

from __future__ import annotations

from pdserve.sim.kernel.compiled import compiled
from pdserve.sim.kernel.layout import Floats, Ints


@compiled
def put_int(tree: Ints, offset: int, size: int, leaf: int, key: int) -> None:
    """Set a leaf of a tree of whole numbers."""
    at = size + leaf
    tree[offset + at] = key
    at >>= 1
    while at >= 1:
        left = tree[offset + 2 * at]
        right = tree[offset + 2 * at + 1]
        least = left if left <= right else right
        if tree[offset + at] == least:
            break
        tree[offset + at] = least
        at >>= 1


@compiled
def winner_int(tree: Ints, offset: int, size: int) -> int:
    """The lowest leaf that has the least value."""
    at = 1
    least = tree[offset + 1]
    while at < size:
        at = 2 * at
        if tree[offset + at] != least:
            at += 1
    return at - size


@compiled
def put_float(tree: Floats, size: int, leaf: int, key: float) -> None:
    """Set a leaf of the one tree of times."""
    at = size + leaf
    tree[at] = key
    at >>= 1
    while at >= 1:
        left = tree[2 * at]
        right = tree[2 * at + 1]
        least = left if left <= right else right
        if tree[at] == least:
            break
        tree[at] = least
        at >>= 1


@compiled
def winner_float(tree: Floats, size: int) -> int:
    """The lowest leaf that has the least time."""
    at = 1
    least = tree[1]
    while at < size:
        at = 2 * at
        if tree[at] != least:
            at += 1
    return at - size


@compiled
def push(
    keys: Floats, values: Ints, offset: int, size: int, key: float, value: int, version: int
) -> None:
    """Add to a heap of `size` entries from `offset` on; the caller counts the entry."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        above = keys[offset + parent]
        if above < key or (above == key and values[2 * (offset + parent) + 1] <= version):
            break
        keys[offset + at] = above
        values[2 * (offset + at)] = values[2 * (offset + parent)]
        values[2 * (offset + at) + 1] = values[2 * (offset + parent) + 1]
        at = parent
    keys[offset + at] = key
    values[2 * (offset + at)] = value
    values[2 * (offset + at) + 1] = version


@compiled
def pop(keys: Floats, values: Ints, offset: int, size: int) -> None:
    """Remove the first of `size` entries; the caller has read it, and counts it out."""
    last = size - 1
    key = keys[offset + last]
    value = values[2 * (offset + last)]
    version = values[2 * (offset + last) + 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= last:
            break
        other = child + 1
        if other < last and (
            keys[offset + other] < keys[offset + child]
            or (
                keys[offset + other] == keys[offset + child]
                and values[2 * (offset + other) + 1] < values[2 * (offset + child) + 1]
            )
        ):
            child = other
        below = keys[offset + child]
        if key < below or (key == below and version <= values[2 * (offset + child) + 1]):
            break
        keys[offset + at] = below
        values[2 * (offset + at)] = values[2 * (offset + child)]
        values[2 * (offset + at) + 1] = values[2 * (offset + child) + 1]
        at = child
    keys[offset + at] = key
    values[2 * (offset + at)] = value
    values[2 * (offset + at) + 1] = version
