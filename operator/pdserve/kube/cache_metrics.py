"""What a cache reports about itself on the metrics page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdserve.exposition import Registry


@dataclass(frozen=True, slots=True)
class CacheState:
    """How far a cache may be trusted."""

    synced: bool
    caught_up: bool
    """The last request was answered, and what happened while others were not is known as well."""
    age: float
    """Seconds since the server was last heard (at most about 60 on a quiet, healthy watch)."""
    error: str
    """Why the last request was not answered; "" where it was."""


class CacheMetrics:
    """Series of one cache, by the plural of its kind."""

    def __init__(
        self, registry: Registry, plural: str, figures: Callable[[], tuple[int, CacheState]]
    ) -> None:
        """`figures`: how many objects the cache holds, and how far it may be trusted."""
        label = ("resource",)
        self.events = registry.counter(
            "pdserve_cache_events_total", "Watch events received, bookmarks not counted.", label
        )
        self.relists = registry.counter(
            "pdserve_cache_relists_total", "Full lists taken; more than one means lost watches.",
            label,
        )  # fmt: skip
        self.failures = registry.counter(
            "pdserve_cache_failures_total", "Lists and watches that failed or broke.", label
        )
        self.handler_errors = registry.counter(
            "pdserve_cache_handler_errors_total", "Change handlers that raised: a defect.", label
        )
        objects = registry.gauge("pdserve_cache_objects", "Objects held.", label)
        age = registry.gauge(
            "pdserve_cache_age_seconds", "Seconds since the API server was last heard.", label
        )
        synced = registry.gauge("pdserve_cache_synced", "1 once listed.", label)

        def collect() -> None:
            count, state = figures()
            objects.labels(plural).set(count)
            age.labels(plural).set(state.age)
            synced.labels(plural).set(state.synced)

        registry.on_collect(collect)
