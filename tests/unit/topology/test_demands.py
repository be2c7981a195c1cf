"""What a pod demands of its node's labels, and the finer rules of matching it."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.topology.affinity import (
    NodeIndex,
    Requirement,
    demanded,
    matches,
    term_text,
    terms_of,
)

ZONE = Requirement("zone", "In", ("z1",))
DISK = Requirement("disk", "Exists")
PIN = {"key": "metadata.name", "operator": "In", "values": ["n1"]}


def expression(need: Requirement) -> dict[str, Any]:
    return {"key": need.key, "operator": need.operator, "values": list(need.values)}


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    required = {"nodeSelectorTerms": list(terms)}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def wants(*needs: Requirement, pinned: bool = False) -> dict[str, Any]:
    pin = {"matchFields": [PIN]} if pinned else {}
    return {"matchExpressions": [expression(need) for need in needs], **pin}


DEMANDS: list[tuple[str, dict[str, Any], set[tuple[Requirement, ...]] | None]] = [
    ("nothing", {}, None),
    ("nothing, in null words", {"nodeSelector": None, "affinity": None}, None),
    ("no node affinity", {"affinity": {"podAffinity": {}, "nodeAffinity": None}}, None),
    ("only preferences", {"affinity": {"nodeAffinity": {"preferred": []}}}, None),
    ("a selector", {"nodeSelector": {"zone": "z1"}}, {(ZONE,)}),
    ("an affinity", {"affinity": affinity(wants(ZONE, DISK))}, {(ZONE, DISK)}),
    (
        "a selector counts in every term",
        {"nodeSelector": {"zone": "z1"}, "affinity": affinity(wants(DISK), wants(ZONE))},
        {(ZONE, DISK), (ZONE, ZONE)},
    ),
    ("the pin is no demand", {"affinity": affinity(wants(pinned=True))}, None),
    ("what stands beside the pin is", {"affinity": affinity(wants(DISK, pinned=True))}, {(DISK,)}),
    (
        "one term that demands nothing",
        {"affinity": affinity(wants(DISK), wants(pinned=True))},
        None,
    ),
    (
        "a selector beside a term of the pin alone",
        {"nodeSelector": {"zone": "z1"}, "affinity": affinity(wants(pinned=True))},
        {(ZONE,)},
    ),
    ("no term: no node", {"affinity": affinity()}, set()),
]


@pytest.mark.parametrize(("spec", "want"), [d[1:] for d in DEMANDS], ids=[d[0] for d in DEMANDS])
def test_what_a_pod_demands_of_labels(
    spec: dict[str, Any], want: set[tuple[Requirement, ...]] | None
) -> None:
    assert demanded(spec) == want


def test_the_order_in_which_a_selector_is_written_is_no_other_demand() -> None:
    one = demanded({"nodeSelector": {"a": "1", "b": "2"}})
    assert one == demanded({"nodeSelector": {"b": "2", "a": "1"}})
    assert [term_text(term) for term in one or ()] == ["a=1, b=2"]


@pytest.mark.parametrize(
    ("value", "bound", "above", "below"),
    [
        ("3", "3", False, False),
        ("4", "3", True, False),
        ("2", "3", False, True),
        ("0", "-1", True, False),
        ("10", "9", True, False),
        ("0010", "9", True, False),
        ("new", "3", False, False),
        ("", "3", False, False),
        ("1_0", "3", False, False),
        (" 5", "3", False, False),
        ("٥", "3", False, False),
        ("5", "1_0", False, False),
        ("5", "new", False, False),
        ("9223372036854775807", "9223372036854775806", True, False),
        ("9223372036854775808", "3", False, False),
        ("-9223372036854775808", "-9223372036854775807", False, True),
        ("-9223372036854775809", "3", False, False),
        ("9" * 5000, "3", False, False),
    ],
)
def test_numbers_are_read_as_kubernetes_reads_them(
    value: str, bound: str, above: bool, below: bool
) -> None:
    for operator, want in (("Gt", above), ("Lt", below)):
        assert matches([(Requirement("gen", operator, (bound,)),)], "n", {"gen": value}) is want


NEEDS = [
    (Requirement("zone", "In"), ""),
    (Requirement("zone", "NotIn"), "abc"),
    (Requirement("gen", "Gt", ("1", "2")), ""),
    (Requirement("gen", "Gt"), ""),
    (Requirement("gen", "Near", ("1",)), ""),
    (Requirement("other", "Lt", ("5",)), ""),
    (Requirement("metadata.name", "NotIn", ("a",)), "bc"),
    (Requirement("metadata.name", "Exists"), "abc"),
]


@pytest.mark.parametrize(
    ("need", "want"), NEEDS, ids=[f"{n.key} {n.operator} {n.values}" for n, _ in NEEDS]
)
def test_what_odd_requirements_match(need: Requirement, want: str) -> None:
    nodes = NodeIndex({"a": {"zone": "z1", "gen": "5"}, "b": {"gen": "5"}, "c": {}})
    assert nodes.matching([(need,)]) == set(want)
    assert nodes.matching([(need,)]) == set(want), "asked again"
    assert nodes.matching([(need, ZONE)]) == set(want) & {"a"}


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "zone", "operator": "In", "values": "z1"},
        {"key": "zone", "operator": None},
        {"operator": "Exists"},
        {"key": "metadata.name", "operator": "Exists"},
    ],
)
def test_a_malformed_requirement_is_an_error(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|no such"):
        terms_of({"nodeSelectorTerms": [{"matchExpressions": [bad]}]})


def test_parts_that_a_selector_leaves_out_or_states_as_null_are_none() -> None:
    assert terms_of({}) == terms_of({"nodeSelectorTerms": None}) == set()
    term = {"matchExpressions": None, "matchFields": None}
    assert terms_of({"nodeSelectorTerms": [term]}) == {()}
    bare = {"key": "zone", "operator": "Exists", "values": None}
    assert terms_of({"nodeSelectorTerms": [{"matchExpressions": [bare]}]}) == {
        (Requirement("zone", "Exists"),)
    }
    assert term_text(()) == "nothing"
