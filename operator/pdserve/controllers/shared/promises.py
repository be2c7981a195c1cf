"""Devices promised to pods that are being created and that the cache does not show yet.

A plan that creates pods is made and its devices are promised here without a pause in between; the
POSTs follow outside of any lock, however long they take. Every other plan counts the promises, so
that no device is booked twice. They live in memory only: after a restart, what was created is in
the list that fills the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pdserve.kube.cache import ViewCache
from pdserve.kube.resource import ObjectKey
from pdserve.topology import PodView, Reservation


class Promises:
    """Reservations by ScenarioGroup. One event loop."""

    def __init__(self) -> None:
        self._held: dict[ObjectKey, tuple[Reservation, ...]] = {}

    @contextmanager
    def held(self, group: ObjectKey, reservations: Iterable[Reservation]) -> Iterator[None]:
        """Promise the devices of pods that `group` creates inside; release what is left after.

        A pod that was created is in the cache by then and holds its devices itself.
        """
        found = tuple(reservations)
        if not found:
            yield
            return
        self._held[group] = found
        try:
            yield
        finally:
            del self._held[group]

    def of(self, pods: ViewCache[PodView]) -> tuple[Reservation, ...]:
        """What is promised to pods that `pods` does not show, ordered by group and pod."""
        return tuple(
            reservation
            for group in sorted(self._held)
            for reservation in self._held[group]
            if pods.get(reservation.pod, group.namespace) is None
        )
