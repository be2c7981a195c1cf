"""All metrics of one process: declared once or alike, rendered sorted by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from pdserve.exposition.exposition_text import MetricError
from pdserve.exposition.families import SECONDS_BUCKETS, Counter, Gauge, Histogram

F = TypeVar("F", Counter, Gauge, Histogram)


class Registry:
    """The metrics of one process. Declaring a name twice alike gives the same metric."""

    def __init__(self) -> None:
        self.families: dict[str, Counter | Gauge | Histogram] = {}
        """What is counted, by name."""
        self._hooks: list[Callable[[], None]] = []

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter; one without labels is exposed as 0 from the start.

        Raises:
            MetricError: a name is malformed, or declared differently before.
        """
        return self._add(Counter(name, help_text, labels))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare a gauge; one without labels is exposed as 0 from the start.

        Raises:
            MetricError: a name is malformed, or declared differently before.
        """
        return self._add(Gauge(name, help_text, labels))

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        """Declare a histogram; `buckets` are inclusive upper bounds, by default for seconds.

        Raises:
            MetricError: a name is malformed or declared differently before, or the bounds do not
                rise.
        """
        return self._add(Histogram(name, help_text, labels, buckets))

    def on_collect(self, hook: Callable[[], None]) -> None:
        """Call `hook` before each exposition, for gauges computed on demand.

        An error of it fails that.
        """
        self._hooks.append(hook)

    def render(self) -> str:
        """The whole exposition in text format 0.0.4, metrics sorted by name; "" without metrics."""
        self._collect()
        lines = [line for name in sorted(self.families) for line in self.families[name].lines()]
        return "\n".join(lines) + "\n" if lines else ""

    def value(self, name: str, *labels: str) -> float:
        """Current value of a counter or gauge series (a histogram's count); 0 when never touched.

        For tests and status pages.

        Raises:
            KeyError: no family of this name is declared.
        """
        self._collect()
        return self.families[name].value(*labels)

    def _collect(self) -> None:
        for hook in self._hooks:
            hook()

    def _add(self, family: F) -> F:
        known = self.families.get(family.name)
        if known is not None:
            if known.declaration() != family.declaration():
                raise MetricError(f"metric {family.name} is already declared differently")
            return cast(F, known)  # a declaration names its kind
        self.families[family.name] = family
        if not family.label_names:
            family.labels()
        return family
