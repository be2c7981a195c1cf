"""Devices promised to pods that are being created and that the cache does not show yet.

A plan that creates pods promises their devices here; nothing else runs between the planning and
the promise. The POSTs follow outside of any lock, however long they take. Every other plan counts
the promises, so that no device is booked twice. They live in memory only: after a restart, the
list that fills the cache contains what was created.

A failed POST is repeated after a back-off, and the API server may have carried it out all the
same. So its promises stay until the cache shows the pods or the ScenarioGroup plans again;
otherwise another ScenarioGroup could get the devices of a pod that exists, or those of the other
half of a P/D group. They stay for at most `FAILED_SECONDS` after the first of several failures in
a row, and not at all where the API server refused: else others would wait for devices that no pod
gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pdserve.kube.errors import KubeError
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object, ObjectKey, key_of
from pdserve.topology import Reservation

FAILED_SECONDS: Final = 60.0
"""For how long, at most, devices are kept for attempts that fail."""
FORGET_SECONDS: Final = 600.0
"""After this a failure counts as a first one again."""


class Promises:
    """Reservations by ScenarioGroup. One event loop."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds, on a clock that never steps."""
        self._now = now
        self._held: dict[ObjectKey, tuple[Reservation, ...]] = {}
        self._failed: dict[ObjectKey, _Failed] = {}
        self._told: list[Callable[[ObjectKey], None]] = []

    @contextmanager
    def held(self, group: ObjectKey, reservations: Iterable[Reservation]) -> Iterator[None]:
        """Promise the devices of pods that `group` creates inside; release what is left after.

        A pod that was created is in the cache by then and holds its devices itself. After an
        exception the rest stays promised; see the module.
        """
        found = tuple(reservations)
        if not found:
            yield
            return
        self._held[group] = found
        self._changed(group)
        kept = found
        try:
            yield
            kept = ()
            self._failed.pop(group, None)
        except KubeError as error:
            if _is_refusal(error):
                kept = ()
            raise
        finally:
            del self._held[group]
            if kept:
                earlier = self._failed.get(group)
                since = self._now() if earlier is None else earlier.since
                self._failed[group] = _Failed(since, kept)
            self._changed(group)

    def plans_anew(self, group: ObjectKey) -> None:
        """`group` is about to ask again for what it wants: nothing of earlier attempts is kept."""
        if group in self._failed:
            self._failed[group] = _Failed(self._failed[group].since, ())
            self._changed(group)

    def group_changed(self, event: ChangeType, old: Object | None, _new: Object | None) -> None:
        """Cache handler of ScenarioGroups: one that is gone will not try again."""
        if event == "DELETED" and old is not None:
            self._failed.pop(key_of(old), None)
            self._changed(key_of(old))

    def of(self, group: ObjectKey) -> tuple[Reservation, ...]:
        """What is promised to pods of `group`, whether they are there yet or not."""
        if group in self._held:
            return self._held[group]
        failed = self._failed.get(group)
        if failed is None or failed.since + FAILED_SECONDS <= self._now():
            return ()
        return failed.kept

    def failed(self) -> frozenset[ObjectKey]:
        """ScenarioGroups whose promises may end by the passing of time."""
        now = self._now()
        for group in [g for g, f in self._failed.items() if f.since + FORGET_SECONDS <= now]:
            del self._failed[group]
        return frozenset(self._failed)

    def on_change(self, tell: Callable[[ObjectKey], None]) -> None:
        """Call `tell` with a ScenarioGroup to which something else is promised now."""
        self._told.append(tell)

    def _changed(self, group: ObjectKey) -> None:
        for tell in self._told:
            tell(group)


@dataclass(frozen=True, slots=True)
class _Failed:
    """Attempts of one ScenarioGroup that failed, one after the other."""

    since: float
    """When the first one did."""
    kept: tuple[Reservation, ...]
    """What the last one was promised; empty when its ScenarioGroup has planned again."""


def _is_refusal(error: KubeError) -> bool:
    """The API server did nothing, and the same request may be refused for ever."""
    return 400 <= error.status < 500 and error.status != 429
