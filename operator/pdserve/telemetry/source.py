"""Where measured values come from, as the ratio loop sees it: a protocol and its keys.

`telemetry.prometheus` implements it; tests and the simulator bring their own. A source never
raises for missing data: what it could not measure is `Unknown` with a reason, and the loop holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pdserve.ratio.types import ScenarioSample, Unknown


class ScenarioKey(NamedTuple):
    """Names a scenario in the whole cluster: pods' namespace, service, scenario."""

    namespace: str
    service: str
    scenario: str


@dataclass(frozen=True, slots=True)
class LiveInstances:
    """Pods whose series count. Series of any other pod (deleted, cold) are left out.

    Names are pod names, the `pod` label of their series. Leave an instance out
    until it has been ready for one window: its first batches are not typical.
    """

    gateways: frozenset[str]
    prefill: frozenset[str] = field(default_factory=frozenset)
    decode: frozenset[str] = field(default_factory=frozenset)


class MetricsSource(Protocol):
    """Samples of many scenarios at once."""

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        """One value for every key of `live`: a sample, or `Unknown` when nothing could be asked.

        Windows are settings of the source. Bounded by the source's own deadline.
        """
        ...

    async def close(self) -> None:
        """Release threads and connections; `sample` must not be called afterwards."""
        ...
