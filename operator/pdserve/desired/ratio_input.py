"""From the API's words to the ratio loop's values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pdserve.api import DAYS, PDService, RoleTemplate, Scenario, Window
from pdserve.desired.service_desired import bounds_of
from pdserve.ratio.choose import CountLimits
from pdserve.ratio.initial import Sizing, initial_counts
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import BudgetLimit, Counts, ExpectedTraffic, RoleDevices
from pdserve.ratio.windows import DAY, TrafficWindow


def expected_of(scenario: Scenario) -> ExpectedTraffic:
    """The traffic to size for until it is measured."""
    expected = scenario.expected
    return ExpectedTraffic(
        prompt_tokens=float(expected.prompt_tokens),
        output_tokens=float(expected.output_tokens),
        requests_per_second=float(expected.requests_per_second),
        prefix_hit=(expected.prefix_hit_percent or 0) / 100.0,
    )


def windows_of(scenario: Scenario) -> tuple[TrafficWindow, ...]:
    """The windows by clock of its schedule; none in the modes that do not follow any."""
    if scenario.ratio.mode in ("Fixed", "External"):
        return ()
    return tuple(_window(w) for w in scenario.schedule)


def _window(window: Window) -> TrafficWindow:
    least = window.least
    return TrafficWindow(
        name=window.name,
        days=tuple(DAYS.index(day) for day in window.days),
        start=_seconds(window.from_),
        end=_seconds(window.to),
        zone=window.time_zone,
        groups=0 if least is None else least.groups or 0,
        prefill=0 if least is None else least.prefill or 0,
        decode=0 if least is None else least.decode or 0,
        rate=float(window.requests_per_second or 0.0),
    )


def _seconds(clock: str) -> int:
    """Seconds after midnight of `HH:MM` or `HH:MM:SS`."""
    hours, minutes, *rest = (int(part) for part in clock.split(":"))
    return min(hours * 3600 + minutes * 60 + sum(rest), DAY)


def role_devices(role: RoleTemplate) -> RoleDevices:
    """Devices one instance of a role takes."""
    return RoleDevices(role.instance.resource, role.instance.devices)


def devices_of(service: PDService, counts: Counts) -> Mapping[str, int]:
    """Devices per resource that these counts take."""
    used: dict[str, int] = {}
    for role, instances in (
        (service.spec.prefill, counts.total("prefill")),
        (service.spec.decode, counts.total("decode")),
    ):
        resource = role.instance.resource
        used[resource] = used.get(resource, 0) + instances * role.instance.devices
    return used


def budget_for(
    service: PDService, scenario: str, wanted: Mapping[str, Counts]
) -> tuple[BudgetLimit, ...]:
    """What the budget leaves to one scenario after what the others want.

    A scenario that has no counts yet is taken at its minimum, so that no scenario starves another
    before it starts.
    """
    others = [_wanted_or_least(s, wanted) for s in service.spec.scenarios if s.name != scenario]
    others += [_spares(s, wanted) for s in service.spec.scenarios]
    return tuple(
        BudgetLimit(b.resource, max(0, b.devices - _taken(service, others, b.resource)))
        for b in service.spec.budget
    )


def first_counts(
    service: PDService,
    scenario: Scenario,
    wanted: Mapping[str, Counts],
    profile: PerformanceProfile | None,
) -> Sizing:
    """The counts a scenario starts with."""
    limits = CountLimits(
        bounds=bounds_of(scenario),
        prefill=role_devices(service.spec.prefill),
        decode=role_devices(service.spec.decode),
        budget=budget_for(service, scenario.name, wanted),
    )
    return initial_counts(limits, scenario.slo.value, expected_of(scenario), profile)


def _wanted_or_least(scenario: Scenario, wanted: Mapping[str, Counts]) -> Counts:
    bounds = bounds_of(scenario)
    least = Counts(bounds.groups.min, bounds.prefill.min, bounds.decode.min)
    return wanted.get(scenario.name, least)


def _spares(scenario: Scenario, wanted: Mapping[str, Counts]) -> Counts:
    """The spares of its P/D groups, which no count of its own has."""
    return Counts(_wanted_or_least(scenario, wanted).groups, 0, scenario.spares)


def _taken(service: PDService, counts: Iterable[Counts], resource: str) -> int:
    return sum(devices_of(service, c).get(resource, 0) for c in counts)
