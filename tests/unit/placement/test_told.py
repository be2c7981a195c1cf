"""What a placement says: the candidates, in which order, and why they lost."""

from __future__ import annotations

import pytest
from tests.support.builders import RESOURCE, fabric, request
from tests.support.placement_answers import placed

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    PlacedInstance,
    Placement,
    Shape,
    choose_removal,
    exact,
    place,
    place_instance,
    traffic,
)
from pdserve.placement.capacity import capacity_for
from pdserve.placement.strategies import improve
from pdserve.topology import Reservation

PODS = "p1 a  n1:8 n2:8\np1 b  m1:8\np2 c  k1:8"
WIDTHS = [
    ("a leaf without crossing ends the search", PODS, request("1P1D"), ["one leaf"]),
    (
        "cells of a pod without crossing do",
        "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8\np2 c  k1:8",
        request("2P2D"),
        ["balanced cells in p1"],
    ),
    (
        "each width in turn up to the domain",
        "p1 a  n1:8\np2 c  k1:8",
        request("1P1D"),
        ["leaves of the whole domain by room", "the whole domain packed"],
    ),
    (
        "a pod that holds all; the domain has nothing else",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D"),
        ["leaves of p1 by room", "p1 packed"],
    ),
    (
        "no wider than what is required",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D", mode="Required", level="pod"),
        ["leaves of p1 by room", "p1 packed"],
    ),
    ("a leaf alone where a leaf is required", PODS, request("1P1D", mode="Required"), ["one leaf"]),
    (
        "crossing that costs nothing ends the search too",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D", level="pod"),
        ["leaves of p1 by room", "p1 packed"],
    ),
]


@pytest.mark.parametrize(
    ("drawing", "asked", "kinds"), [w[1:] for w in WIDTHS], ids=[w[0] for w in WIDTHS]
)
def test_candidates_from_the_closest_to_the_widest(
    drawing: str, asked: GroupRequest, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many ways to look at all of them."""
    monkeypatch.setattr(exact, "MAX_WORK", 0)
    found = [c.kind for c in placed(drawing, asked).candidates if "apart" not in c.kind]
    assert sorted(found) == sorted(kinds)


def test_a_required_part_is_searched_for_the_least_traffic_inside_it() -> None:
    """`Preferred` at this level would not look at leaves at all."""
    drawing = "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8 m3:8"
    required = placed(drawing, request("3P2D", mode="Required", level="pod"))
    assert required.cost.traffic > 0
    assert placed(drawing, request("3P2D", level="pod")).cost.traffic == 0


def test_the_best_of_few_ways_stands_beside_what_strategies_find() -> None:
    found = placed("p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8\np2 c  k1:8 k2:8", request("5P2D"))
    assert found.candidates[0].kind == "best of all ways in the whole domain"
    assert found.candidates[0].verdict == "won"
    assert any("lost on" in c.verdict for c in found.candidates)


def test_no_candidate_can_be_bettered_by_moving_one_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "MAX_WORK", 0)
    drawing = "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8\np2 c  k1:8 k2:8 k3:8"
    asked = request("3P2D")
    tree = fabric(drawing)
    capacity = capacity_for(tree, asked)
    searched = [c for c in placed(drawing, asked).candidates if "cells" not in c.kind]
    assert len(searched) == 2
    for candidate in searched:
        spread = {cell.leaf: (cell.prefill, cell.decode) for cell in candidate.cells}
        inside = [x for x in tree.leaves if "p1" not in candidate.kind or x[0] == "p1"]
        better = improve(spread, capacity, inside, (3, 1))
        assert traffic(better, (3, 1)) == candidate.cost.traffic


def test_cells_and_instances_come_in_the_order_of_leaves_not_of_room() -> None:
    drawing = "p1 a  n1:8\np1 b  m1:8 m2:8 m3:8 m4:8\np2 c  k1:8"
    found = placed(drawing, request("3P2D"))
    assert [cell.leaf[-1] for cell in found.cells] == ["a", "b"]
    assert [a.nodes[0] for a in found.assignments] == ["n1", "m1", "m3", "m2", "m4"]
    for candidate in found.candidates:
        leaves = [cell.leaf for cell in candidate.cells]
        assert leaves == sorted(leaves)


def test_the_winner_comes_first_and_the_others_say_on_what_they_lost() -> None:
    found = placed("p1 a  n1:8 n2:8 n3:8 n4:8\np1 b  m1:8\np2 c  k1:8 k2:8", request("3P2D"))
    assert found.explanation[0].endswith(": won")
    verdicts = [c.verdict for c in found.candidates]
    assert verdicts.count("won") == 1
    for candidate in found.candidates:
        if candidate.verdict != "won" and candidate.cost == found.cost:
            assert candidate.verdict == "lost: equal cost, generated later"
        elif candidate.verdict != "won":
            assert candidate.verdict.startswith("lost on ")
            assert candidate.cost > found.cost


def test_three_candidates_are_shown_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MAX_WORK", 0)
    pods = "\n".join(f"p{k} a{k}  n{k}:8\np{k} b{k}  m{k}:8" for k in range(6))
    found = placed(pods, request("1P1D"))
    assert len(found.candidates) > 3
    shown = [line for line in found.explanation if "traffic" in line]
    assert len(shown) == 3
    assert found.explanation[-1] == f"{len(found.candidates) - 3} costlier candidates not shown"


def test_five_leaves_are_shown_for_one_more_instance() -> None:
    leaves = "\n".join(f"p1 a{k}  n{k}:8" for k in range(7))
    found = place_instance(fabric(leaves), request("1P1D"), "decode", [])
    assert isinstance(found, InstancePlacement)
    assert len(found.explanation) == 5


def test_a_placement_reserves_what_each_instance_takes() -> None:
    shape = Shape(RESOURCE, 2, requests=(("cpu", 5),))
    found = place(fabric("p1 a  n1:8"), GroupRequest(1, 1, shape, shape))
    assert isinstance(found, Placement)
    assert [(a.role, a.ordinal, a.nodes) for a in found.assignments] == [
        ("prefill", 0, ("n1",)),
        ("decode", 0, ("n1",)),
    ]
    assert set(found.reservations) == {
        Reservation(f"{role}-0", "n1", resource, amount)
        for role in ("prefill", "decode")
        for resource, amount in ((RESOURCE, 2), ("cpu", 5))
    }


REMOVALS = [
    ("not ready first, whatever the traffic", "D:n1 d:n2 D:k1", 1, ["decode-1"]),
    ("then what leaves the least traffic", "D:n1 D:n2 D:k1", 1, ["decode-2"]),
    ("then the fewest leaves, then the last name", "D:n1 D:n2 D:n1", 1, ["decode-2"]),
    ("one after another", "D:n1 D:n2 D:k1", 2, ["decode-2", "decode-1"]),
    ("none", "D:n1 D:n2", 0, []),
    ("never the last", "D:n1", 1, []),
]


@pytest.mark.parametrize(
    ("group", "count", "want"), [r[1:] for r in REMOVALS], ids=[r[0] for r in REMOVALS]
)
def test_which_instances_are_given_up(group: str, count: int, want: list[str]) -> None:
    members = [
        PlacedInstance(f"decode-{k}", "decode", (part.partition(":")[2],), part[0] == "D")
        for k, part in enumerate(group.split())
    ]
    members.append(PlacedInstance("prefill-0", "prefill", ("n1",)))
    members.append(PlacedInstance("prefill-1", "prefill", ("n2",)))
    found = choose_removal(fabric("p1 a  n1:8 n2:8\np2 c  k1:8"), "decode", members, count)
    assert list(found.names) == want
    assert ("the last decode stays" in found.explanation) is (count > len(want))
