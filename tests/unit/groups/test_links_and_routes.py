"""Who is linked, who may be routed to, whom the operator asks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.group_world import wanted
from tests.support.instances import changed, observed

from pdserve.api.common import MAX_INSTANCES
from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.linking import links_missing
from pdserve.groups.naming import free_slots, is_slot_of, pod_name
from pdserve.groups.polls import polls
from pdserve.groups.routable import endpoint, routable
from pdserve.groups.view import GroupView
from pdserve.terms import ROLES, Role
from pdserve.wire.links import LinkReport
from pdserve.wire.names import slot_name
from pdserve.wire.peers import Peer, PeerTable

SLOTS: dict[str, dict[Role, int]] = {
    "r1": {"prefill": 2, "decode": 4},
    "r2": {"prefill": 3, "decode": 5},
}


def instance(name: str, **more: object) -> InstanceObs:
    """`p0`, `d1`: linked and Ready unless said otherwise."""
    role: Role = "prefill" if name.startswith("p") else "decode"
    base = observed(
        name,
        uid=f"uid-{name}",
        slot=name,
        role=role,
        group_index=0,
        revision="r1",
        node="n1",
        created=0.0,
        pod_ip=f"10.0.0.{ord(name[0]) + int(name[1:])}",
        bound=True,
        running=True,
        container_id=f"c-{name}",
        ready=True,
        linked_container=f"c-{name}",
    )
    return changed(base, **more)


def table(*instances: InstanceObs, version: int = 3) -> PeerTable:
    peers = tuple(
        Peer(i.name, i.role, endpoint(i.pod_ip or ""), f"{i.pod_ip}:5600", i.revision)
        for i in instances
    )
    return PeerTable("g-0", version, peers)


def up(*peers: str, version: int = 3, down: str = "") -> LinkReport:
    return LinkReport(version, frozenset(peers), {down: "refused"} if down else {})


def missing(
    name: str, members: list[InstanceObs], links: dict[str, LinkReport], named: list[str]
) -> str | None:
    by_name = {i.name: i for i in members}
    tab = table(*(by_name[n] for n in named))
    seen = t.Observation(wanted("1P1D"), tuple(members), {0: tab}, links, {}, (), frozenset(), 0.0)
    return links_missing(GroupView(0, tuple(members), tab), by_name[name], seen)


NEW = {"linked_container": None, "ready": False}

LINKS = [
    ("both ends report it", ["d0"], {"p1": up("d0"), "d0": up("p1")}, None),
    ("no report yet", ["d0"], {"d0": up("p1")}, "it has not taken over table 3"),
    (
        "an older table",
        ["d0"],
        {"p1": up("d0", version=2), "d0": up("p1")},
        "it has not taken over table 3",
    ),
    ("its own end is down", ["d0"], {"p1": up(down="d0"), "d0": up("p1")}, "refused"),
    ("the other end is down", ["d0"], {"p1": up("d0"), "d0": up()}, "d0 does not report it up"),
    (
        "the other end has an older table",
        ["d0"],
        {"p1": up("d0"), "d0": up("p1", version=2)},
        "d0 does not report it up",
    ),
    ("no peer of the other role", [], {"p1": up()}, "no peer of the other role runs"),
]


@pytest.mark.parametrize(
    ("others", "links", "want"), [c[1:] for c in LINKS], ids=[c[0] for c in LINKS]
)
def test_when_an_instance_is_linked(
    others: list[str], links: dict[str, LinkReport], want: str | None
) -> None:
    members = [instance("p1", **NEW), *(instance(o) for o in others)]
    found = missing("p1", members, links, ["p1", *others])
    assert (found is None) if want is None else (found is not None and want in found)


def test_a_broken_newcomer_does_not_hold_back_a_sound_one() -> None:
    members = [instance("p1", **NEW), instance("d0"), instance("d1", **NEW)]
    links = {"p1": up("d0", down="d1"), "d0": up("p1", down="p0")}
    assert missing("p1", members, links, ["p1", "d0", "d1"]) is None


def test_before_anything_serves_all_live_peers_are_needed() -> None:
    members = [instance("p1", **NEW), instance("d0", **NEW), instance("d1", **NEW)]
    links = {"p1": up("d0", down="d1"), "d0": up("p1"), "d1": up()}
    found = missing("p1", members, links, ["p1", "d0", "d1"])
    assert found == "link to d1 is down: refused"


@pytest.mark.parametrize(
    "change",
    [
        {"fault": "CrashLoop"},
        {"terminating": True},
        {"drain_started": 1.0},
        {"running": False},
        {"ready": False},
        {"linked_container": None},
        {"container_id": "c-other"},
        {"pod_ip": "10.9.9.9"},
        {"pod_ip": None},
    ],
    ids=str,
)
@pytest.mark.invariant(1)
def test_what_is_never_routed(change: dict[str, object]) -> None:
    members = [instance("p0"), instance("p1"), instance("d0")]
    tab = table(*members)
    sound = routable(members, {0: tab}, SLOTS)
    assert [i.id for i in sound[0].instances] == ["p0", "p1", "d0"]
    assert [i.slots for i in sound[0].instances] == [2, 2, 4]
    found = routable([changed(members[0], **change), *members[1:]], {0: tab}, SLOTS)
    assert [i.id for i in found[0].instances] == ["p1", "d0"]


def test_a_group_without_both_roles_is_not_routed() -> None:
    members = [instance("p0"), instance("d0", ready=False)]
    assert routable(members, {0: table(*members)}, SLOTS) == ()
    assert routable([instance("p0"), instance("d0")], {}, SLOTS) == ()


def test_one_group_is_routed_in_one_revision() -> None:
    old = [instance("p0"), instance("d0")]
    new = [instance(n, revision="r2") for n in ("p1", "p2", "d1")]
    (group,) = routable([*old, *new], {0: table(*old, *new)}, SLOTS)
    assert (group.revision, [i.id for i in group.instances]) == ("r2", ["p1", "p2", "d1"])
    assert [i.slots for i in group.instances] == [3, 3, 5], "as that revision has them"
    fuller = [*old, instance("p3")]
    for members in ([*fuller, *new[1:]], [*fuller, *new]):
        (group,) = routable(members, {0: table(*members)}, SLOTS)
        assert group.revision == "r1", "the fuller one; of equal ones the first by name"


def test_ipv6_addresses_are_bracketed() -> None:
    assert endpoint("fd00::1") == "http://[fd00::1]:8000"


def test_a_settled_group_is_not_polled() -> None:
    members = [instance("p0"), instance("d0")]
    assert polls(members, {0: table(*members)}, frozenset()).links == ()


def test_a_group_with_a_newcomer_is_polled_at_both_ends() -> None:
    members = [instance("p0"), instance("d0"), instance("d1", **NEW)]
    assert polls(members, {0: table(*members)}, frozenset()).links == ("d0", "d1", "p0")
    assert polls(members, {0: table(*members[:2])}, frozenset()).links == ()


def test_drains_start_when_routes_are_left() -> None:
    members = [instance("p0", drain_started=1.0), instance("p1"), instance("d0")]
    tab = {0: table(*members)}
    assert polls(members, tab, frozenset({"p0"})).drains == ()
    assert polls(members, tab, frozenset({"p1"})).drains == ("p0",)


def test_a_lone_decode_drains_at_once_while_another_stays() -> None:
    members = [instance("p0"), instance("d0", drain_started=1.0), instance("d1")]
    assert polls(members, {0: table(*members)}, frozenset()).drains == ("d0",)


def test_names_are_stable_and_new_for_every_substitute() -> None:
    slot = "shop-chat-0-p0"
    first = pod_name(slot, "r1", None)
    assert first == pod_name(slot, "r1", None)
    assert first.startswith(slot + "-")
    assert len({first, pod_name(slot, "r2", None), pod_name(slot, "r1", "uid-1")}) == 3


LONGEST = "production-recommendations-cha-interactive-assistan"


@pytest.mark.parametrize("name", ["shop-chat", LONGEST, LONGEST[:50] + "-", "a" * 51])
def test_every_pod_name_fits_a_label_and_no_two_are_alike(name: str) -> None:
    seen: set[str] = set()
    target = replace(wanted("1P1D"), name=name)
    for index in (*range(12), 63, 64):
        for role in ROLES:
            for ordinal in range(MAX_INSTANCES):
                slot = slot_name(name, index, role, ordinal)
                usual = f"{name}-{index}-{role[0]}{ordinal}"
                assert len(pod_name(slot, "r1", None)) <= 63
                # A name that fits is the one that it always was.
                assert slot == usual or len(usual) > 63 - 7
                assert is_slot_of(slot, target, index, role)
                assert not is_slot_of(slot, target, index + 100, role)
                assert slot not in seen
                seen.add(slot)


def test_shortened_names_of_different_groups_differ() -> None:
    other = LONGEST[:-1] + "x"
    assert slot_name(LONGEST, 10, "prefill", 10) != slot_name(other, 10, "prefill", 10)
    assert slot_name(LONGEST, 9, "prefill", 9) == f"{LONGEST}-9-p9"


def test_slots_are_filled_from_the_lowest() -> None:
    assert free_slots(wanted("1P1D"), 0, "decode", {"shop-chat-0-d1"}, 3) == (
        "shop-chat-0-d0",
        "shop-chat-0-d2",
        "shop-chat-0-d3",
    )
