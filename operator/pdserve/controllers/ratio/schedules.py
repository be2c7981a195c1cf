"""Which windows by clock hold for each scenario now; reckoned again only when that may change."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.api import Scenario
from pdserve.desired.ratio_input import windows_of
from pdserve.ratio.types import LoopSettings
from pdserve.ratio.windows import NO_WINDOWS, WindowsNow, lead_of, windows_at
from pdserve.telemetry.source import ScenarioKey


@dataclass(frozen=True, slots=True)
class _Known:
    scenario: Scenario
    lead: float
    at: float
    found: WindowsNow


class Schedules:
    """See the module."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._known: dict[ScenarioKey, _Known] = {}

    def now(
        self, key: ScenarioKey, scenario: Scenario, settings: LoopSettings, now: float
    ) -> WindowsNow:
        """What the scenario's windows say; `settings`: with the measured cold start."""
        if not scenario.schedule:
            self._known.pop(key, None)
            return NO_WINDOWS
        lead, known = lead_of(settings), self._known.get(key)
        if (
            known is not None
            and known.scenario is scenario
            and known.lead == lead
            and known.at <= now < known.found.next_change
        ):
            return known.found
        found = windows_at(windows_of(scenario), now, lead)
        self._known[key] = _Known(scenario, lead, now, found)
        return found

    def keep(self, keys: set[ScenarioKey]) -> None:
        """Forget scenarios that are not among `keys`."""
        for gone in self._known.keys() - keys:
            del self._known[gone]
