"""Which nodes a node selector matches: Kubernetes' rules for terms and operators."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.topology.affinity import NodeIndex, terms_of

NODES = NodeIndex(
    {
        "a": {"host": "a", "zone": "z1", "gen": "3"},
        "b": {"host": "b", "zone": "z1", "gen": "10"},
        "c": {"host": "c", "zone": "z2", "gen": "new"},
        "d": {},
    }
)


def label(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


MATCHES: list[tuple[str, list[dict[str, Any]], str]] = [
    ("one of the values", [label("zone", "In", "z1", "z9")], "ab"),
    ("none of the values; a node without the label too", [label("zone", "NotIn", "z1")], "cd"),
    ("has it", [label("zone", "Exists")], "abc"),
    ("has it not", [label("zone", "DoesNotExist")], "d"),
    ("greater, as numbers; others never", [label("gen", "Gt", "3")], "b"),
    ("less", [label("gen", "Lt", "10")], "a"),
    ("terms: any of them", [label("host", "In", "a"), label("host", "In", "c")], "ac"),
    (
        "requirements: all of them",
        [{"matchExpressions": [*label("zone", "In", "z1")["matchExpressions"],
                               *label("host", "NotIn", "a")["matchExpressions"]]}],
        "b",
    ),
    (
        "a node's own name",
        [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["d"]}]}],
        "d",
    ),
    ("a term without requirements matches nothing", [{}], ""),
    ("no term matches nothing", [], ""),
    ("an operator of another time matches nothing", [label("zone", "Near", "z1")], ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "names"), [case[1:] for case in MATCHES], ids=[case[0] for case in MATCHES]
)
def test_what_a_selector_matches(terms: list[dict[str, Any]], names: str) -> None:
    assert NODES.matching(terms_of({"nodeSelectorTerms": terms})) == set(names)


@pytest.mark.parametrize(
    "selector",
    [
        5,
        {"nodeSelectorTerms": "all"},
        {"nodeSelectorTerms": [5]},
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": 5, "operator": "In"}]}]},
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In",
                                                      "values": [{}]}]}]},
        {"nodeSelectorTerms": [{"matchFields": [{"key": "spec.x", "operator": "In"}]}]},
    ],
)  # fmt: skip
def test_what_is_no_selector_is_said(selector: Any) -> None:
    with pytest.raises(ValueError, match=r"must|needs|no such"):
        terms_of(selector)
