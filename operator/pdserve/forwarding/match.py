"""Which scenario of a route table a request belongs to, and which of its groups may serve it.

The label is made by the client or by an intention service before us: a model name, a header, or
both (P/D-Serve section 4.1). While another model is rolled out the groups of a scenario serve
different names: it is then divided into parts, and a request belongs to the parts that serve its
name. Neighbour: `wire.routes` holds the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable, Served, served


@dataclass(frozen=True, slots=True)
class Part:
    """The groups of one scenario that serve the same; nearly always all of them."""

    scenario: RouteScenario
    """With these groups only."""
    served: Served


def parts_of(table: RouteTable, scenario: RouteScenario) -> tuple[Part, ...]:
    """The parts of a scenario, in the order of their first group; one without any group."""
    found: dict[Served, list[RouteGroup]] = {}
    for group in scenario.groups:
        found.setdefault(served(table, scenario, group), []).append(group)
    if not found:
        return (Part(scenario, served(table, scenario)),)
    return tuple(
        Part(dataclasses.replace(scenario, groups=tuple(groups)), what)
        for what, groups in found.items()
    )


class Matcher:
    """Finds the scenario of each request of one route table."""

    __slots__ = ("_scenarios",)

    def __init__(self, table: RouteTable) -> None:
        self._scenarios = tuple((s, frozenset(_names(table, s))) for s in table.scenarios)

    def find(self, model: str, headers: Mapping[str, str]) -> RouteScenario | None:
        """First scenario in table order that takes this request, or None.

        Args:
            model: the request's `model`.
            headers: request headers, names in lower case.

        A scenario that names no models takes the service's own model name only, so that a mistyped
        name is answered with the known ones instead of being served by accident.
        """
        for scenario, names in self._scenarios:
            if model in names and _headers_match(scenario, headers):
                return scenario
        return None


def match_scenario(
    table: RouteTable, model: str, headers: Mapping[str, str]
) -> RouteScenario | None:
    """The scenario of one request; see `Matcher.find`."""
    return Matcher(table).find(model, headers)


def known_models(table: RouteTable) -> tuple[str, ...]:
    """Every model name that some scenario takes, in table order, each once."""
    names = (name for s in table.scenarios for name in _names(table, s))
    return tuple(dict.fromkeys(names))


def model_len(table: RouteTable, name: str) -> int:
    """Tokens of prompt and answer that every scenario takes under this name; 0 if none says it."""
    known = (s.max_model_len for s in table.scenarios if name in _names(table, s))
    return min((tokens for tokens in known if tokens), default=0)


def describe_known(table: RouteTable) -> str:
    """What would have matched, for the error a client reads."""
    parts = []
    for s in table.scenarios:
        models = " or ".join(repr(m) for m in _names(table, s))
        headers = "".join(f" with header {k}: {v}" for k, v in sorted(s.headers.items()))
        parts.append(f"{s.name} (model {models}{headers})")
    return "; ".join(parts) or "none yet"


def _names(table: RouteTable, scenario: RouteScenario) -> tuple[str, ...]:
    """Names that clients may use: those that groups serve; those to come while there is none."""
    if not scenario.groups:
        return served(table, scenario).names
    each = (name for g in scenario.groups for name in served(table, scenario, g).names)
    return tuple(dict.fromkeys(each))


def _headers_match(scenario: RouteScenario, headers: Mapping[str, str]) -> bool:
    return all(headers.get(name) == value for name, value in scenario.headers.items())
