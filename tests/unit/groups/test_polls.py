"""When a draining instance may be asked so, and who is asked for links."""

from __future__ import annotations

import pytest
from tests.unit.groups.test_links_and_routes import NEW, instance, table

from pdserve.groups.instances import InstanceObs
from pdserve.groups.polls import may_drain, polls

DRAINS = {"drain_started": 1.0}
P0, D0 = instance("p0", **DRAINS), instance("d0", **DRAINS)
P1, D1 = instance("p1"), instance("d1")

ROWS: list[tuple[str, InstanceObs, list[InstanceObs], set[str], bool]] = [
    ("a prefill", P0, [P1, D1], set(), True),
    ("one that gateways still know", P0, [P1, D1], {"p0"}, False),
    ("one that stays", P1, [P0, D1], set(), False),
    ("one that stopped", instance("p0", **DRAINS, running=False), [D1], set(), False),
    ("one that is being deleted", instance("p0", **DRAINS, terminating=True), [D1], set(), False),
    ("a decode beside one that stays", D0, [P1, D1], set(), True),
    ("beside one that is not linked", D0, [P1, instance("d1", **NEW)], set(), False),
    ("beside one that drains too", D0, [P1, instance("d1", **DRAINS)], set(), False),
    ("beside one that is lost", D0, [P1, instance("d1", fault="CrashLoop")], set(), False),
    ("beside one that is deleted", D0, [P1, instance("d1", terminating=True)], set(), False),
    ("the last decode, with a prefill", D0, [P0], set(), False),
    ("whose prefill is lost", D0, [instance("p0", fault="PodFailed")], set(), True),
    ("whose prefill is deleted", D0, [instance("p0", terminating=True)], set(), True),
    ("alone", D0, [], set(), True),
]


@pytest.mark.parametrize(
    ("one", "others", "routed", "want"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
@pytest.mark.invariant(5)
def test_which_instances_may_drain(
    one: InstanceObs, others: list[InstanceObs], routed: set[str], want: bool
) -> None:
    members = [one, *others]
    named = [i.name for i in members]
    assert may_drain(one, members, named, frozenset(routed)) is want
    told = polls(members, {0: table(*members)}, frozenset(routed)).drains
    assert (one.name in told) is want


def test_a_prefill_that_left_the_table_keeps_no_decode_from_draining() -> None:
    assert may_drain(D0, [D0, P0], ["d0"], frozenset())
    assert polls([D0, P0], {}, frozenset()).drains == ("d0", "p0")


LINKS: list[tuple[str, list[InstanceObs], tuple[str, ...]]] = [
    ("all linked: none", [P1, D1], ()),
    ("one is not: both ends", [P1, instance("d1", **NEW)], ("d1", "p1")),
    ("not one that does not run", [P1, instance("d1", **NEW, running=False)], ()),
    ("not one that is lost", [P1, instance("d1", **NEW, fault="CrashLoop")], ()),
    ("not for one that is deleted", [P1, instance("d1", **NEW, terminating=True)], ()),
    ("but it is asked for another's sake",
     [instance("p1", **NEW), instance("d1", terminating=True)], ("d1", "p1")),
]  # fmt: skip


@pytest.mark.parametrize(("members", "want"), [r[1:] for r in LINKS], ids=[r[0] for r in LINKS])
def test_links_are_asked_for_while_one_is_missing(
    members: list[InstanceObs], want: tuple[str, ...]
) -> None:
    assert polls(members, {0: table(*members)}, frozenset()).links == want
    assert polls(members, {}, frozenset()).links == (), "there is no table yet"
