"""Which scenario a request belongs to, while groups of one serve different models."""

from __future__ import annotations

import pytest

from pdserve.forwarding.match import describe_known, known_models, match_scenario, parts_of
from pdserve.terms import Slo
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

SLO = Slo(1.0, 0.2, 0.05, 0.99)


def group(index: int, model: str = "", flow: str = "", names: tuple[str, ...] = ()) -> RouteGroup:
    return RouteGroup(index, "r", (), names, model, flow)


def scenario(*groups: RouteGroup, name: str = "s", models: tuple[str, ...] = ()) -> RouteScenario:
    return RouteScenario(name, SLO, groups, models=models)


def table(*scenarios: RouteScenario) -> RouteTable:
    return RouteTable("shop", 1, "new", "Reference", scenarios)


PARTS: list[tuple[str, RouteScenario, list[tuple[tuple[str, ...], str, str, list[int]]]]] = [
    ("no group yet: what a new one would serve", scenario(),
     [(("new",), "new", "Reference", [])]),
    ("all the same", scenario(group(0), group(1)), [(("new",), "new", "Reference", [0, 1])]),
    ("names of the scenario", scenario(group(0), models=("a", "b")),
     [(("a", "b"), "new", "Reference", [0])]),
    ("the former model, in the order of the first group of each",
     scenario(group(0, "old", names=("old",)), group(1), group(2, "old", names=("old",))),
     [(("old",), "old", "Reference", [0, 2]), (("new",), "new", "Reference", [1])]),
    ("another engine under the same name", scenario(group(0), group(1, flow="Other")),
     [(("new",), "new", "Reference", [0]), (("new",), "new", "Other", [1])]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "want"), [p[1:] for p in PARTS], ids=[p[0] for p in PARTS])
def test_groups_that_serve_the_same_are_one_part(
    asked: RouteScenario, want: list[tuple[tuple[str, ...], str, str, list[int]]]
) -> None:
    found = parts_of(table(asked), asked)
    assert [
        (p.served.names, p.served.model, p.served.flow, [g.index for g in p.scenario.groups])
        for p in found
    ] == want


def test_a_request_is_taken_under_the_names_that_groups_serve() -> None:
    rolled = scenario(group(0, "old", names=("old",)), group(1))
    empty = scenario(name="empty", models=("later",))
    routes = table(rolled, empty)
    cases = (("old", "s"), ("new", "s"), ("later", "empty"), ("other", None))
    for model, want in cases:
        found = match_scenario(routes, model, {})
        assert (found and found.name) == want
    assert known_models(routes) == ("old", "new", "later")
    assert describe_known(routes) == "s (model 'old' or 'new'); empty (model 'later')"


def test_a_name_that_no_group_serves_any_more_or_yet_is_not_taken() -> None:
    only_old = table(scenario(group(0, "old", names=("old",)), models=("new",)))
    assert match_scenario(only_old, "new", {}) is None
    assert match_scenario(only_old, "old", {}) is not None


def test_every_header_of_a_scenario_must_be_there() -> None:
    picky = RouteScenario("s", SLO, (), headers={"x-tier": "gold", "x-app": "shop"})
    for headers, taken in (
        ({"x-tier": "gold", "x-app": "shop", "x-more": "1"}, True),
        ({"x-tier": "gold"}, False),
        ({"x-app": "shop"}, False),
        ({}, False),
    ):
        assert (match_scenario(table(picky), "new", headers) is picky) is taken
    assert describe_known(table(picky)) == (
        "s (model 'new' with header x-app: shop with header x-tier: gold)"
    )
