"""Which scenario of a route table a request belongs to.

The label is made by the client or by an intention service before us: a model name, a header, or
both (P/D-Serve section 4.1). Neighbour: `wire.routes` holds the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.wire.routes import RouteScenario, RouteTable


def match_scenario(
    table: RouteTable, model: str, headers: Mapping[str, str]
) -> RouteScenario | None:
    """First scenario in table order that takes this request, or None.

    Args:
        table: the service's routes.
        model: the request's `model`.
        headers: request headers, names in lower case.

    A scenario that names no models takes the service's own model name only, so that a mistyped
    name is answered with the known ones instead of being served by accident.
    """
    for scenario in table.scenarios:
        models = scenario.models or (table.model,)
        if model in models and _headers_match(scenario, headers):
            return scenario
    return None


def known_models(table: RouteTable) -> tuple[str, ...]:
    """Every model name that some scenario takes, in table order, each once."""
    names = (m for s in table.scenarios for m in (s.models or (table.model,)))
    return tuple(dict.fromkeys(names))


def describe_known(table: RouteTable) -> str:
    """What would have matched, for the error a client reads."""
    parts = []
    for s in table.scenarios:
        models = " or ".join(repr(m) for m in (s.models or (table.model,)))
        headers = "".join(f" with header {k}: {v}" for k, v in sorted(s.headers.items()))
        parts.append(f"{s.name} (model {models}{headers})")
    return "; ".join(parts) or "none yet"


def _headers_match(scenario: RouteScenario, headers: Mapping[str, str]) -> bool:
    return all(headers.get(name) == value for name, value in scenario.headers.items())
