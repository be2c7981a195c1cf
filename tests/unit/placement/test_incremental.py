"""One instance more or fewer in a group that runs."""

from __future__ import annotations

from tests.support.builders import fabric, request

from pdserve.placement import (
    InstancePlacement,
    NoFit,
    PlacedInstance,
    choose_removal,
    place_instance,
)
from pdserve.terms import Role

TREE = """p1 a  n1:0/8 n2:0/8 n3:8
          p1 b  m1:0/8 m2:8
          p2 c  k1:8 k2:8"""


def members(text: str) -> list[PlacedInstance]:
    """`members("P:n1 D:n2 d:m1")`; lower case: not ready."""
    found: list[PlacedInstance] = []
    for k, part in enumerate(text.split()):
        letter, node = part.split(":")
        role: Role = "prefill" if letter in "Pp" else "decode"
        found.append(PlacedInstance(f"{role}-{k}", role, (node,), letter.isupper()))
    return found


def leaf_of(found: InstancePlacement | NoFit) -> str:
    assert isinstance(found, InstancePlacement), found
    return found.leaf[-1]


def test_a_decode_goes_to_the_leaf_with_prefills_to_spare() -> None:
    found = place_instance(fabric(TREE), request("2P2D"), "decode", members("P:n1 D:n2 P:m1"))
    assert leaf_of(found) == "b"


def test_a_prefill_goes_to_the_leaf_with_decodes_to_spare() -> None:
    found = place_instance(fabric(TREE), request("2P2D"), "prefill", members("P:n1 D:n2 D:m1"))
    assert leaf_of(found) == "b"


def test_a_substitute_prefers_the_leaf_then_the_pod_of_what_it_replaces() -> None:
    group = members("P:n1 D:n2")
    near = ("p1", "b")
    assert leaf_of(place_instance(fabric(TREE), request("2P1D"), "prefill", group, near)) == "b"
    full = TREE.replace("m2:8", "m2:0/8")
    assert leaf_of(place_instance(fabric(full), request("2P1D"), "prefill", group, near)) == "a"
    fuller = full.replace("n3:8", "n3:0/8")
    assert leaf_of(place_instance(fabric(fuller), request("2P1D"), "prefill", group, near)) == "c"


def test_suspects_are_excluded() -> None:
    asked = request("2P1D", exclude=["m2"])
    found = place_instance(fabric(TREE), asked, "prefill", members("P:n1 D:n2"), ("p1", "b"))
    assert leaf_of(found) == "a"


def test_required_keeps_the_group_together() -> None:
    asked = request("3P1D", mode="Required")
    group = members("P:n1 D:n2")
    assert leaf_of(place_instance(fabric(TREE), asked, "prefill", group)) == "a"
    full = fabric(TREE.replace("n3:8", "n3:4/8"))
    found = place_instance(full, asked, "prefill", group)
    assert isinstance(found, NoFit)
    assert "4 devices are free on usable nodes of the part the group is in (a)" in found.message


def test_what_is_not_ready_goes_first() -> None:
    removal = choose_removal(fabric(TREE), "decode", members("P:n1 D:n2 d:n3 D:m1"), 1)
    assert removal.names == ("decode-2",)


def test_removal_leaves_the_least_traffic() -> None:
    removal = choose_removal(fabric(TREE), "decode", members("P:n1 D:n2 D:k1"), 1)
    assert removal.names == ("decode-2",)
    assert "least of 2" in removal.explanation[0]


def test_the_last_of_a_role_stays() -> None:
    removal = choose_removal(fabric(TREE), "decode", members("P:n1 D:n2 D:n3"), 5)
    assert len(removal.names) == 1
    assert removal.explanation[-1] == "the last decode stays"
