"""What the plan marks Linked or not: the readiness gate of each member."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.builders import fabric
from tests.support.group_world import wanted
from tests.unit.groups.test_links_and_routes import NEW, instance, table, up

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.linking import update_links
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.wire.links import LinkReport

BOTH = {"p0": up("d0"), "d0": up("p0")}
DECODE = instance("d0")
MARKED, FRESH = instance("p0"), instance("p0", **NEW)


def two(*linked: str | None, now: tuple[str | None, str | None] = ("c0", "c1")) -> InstanceObs:
    """A prefill of two members, marked for these containers, while those of `now` run."""
    members = tuple(
        replace(
            MARKED.members[0], pod=f"p0-m{k}", uid=f"u{k}", index=k, linked_container=mark,
            container_id=runs,
        )
        for k, (mark, runs) in enumerate(zip(linked, now, strict=True))
    )  # fmt: skip
    return replace(MARKED, members=members)


Links = dict[str, LinkReport]
ROWS: list[tuple[str, InstanceObs, Links, bool, list[str], str]] = [
    ("both ends have the link", FRESH, BOTH, True, ["+p0"], "linked at table 3"),
    ("it is marked already", MARKED, {}, True, [], ""),
    ("one end has not", FRESH, {"p0": up("d0"), "d0": up()}, True, [],
     "p0 is not linked yet: d0 does not report it up"),
    ("it does not run", instance("p0", **NEW, running=False), BOTH, True, [], ""),
    ("it has no container", instance("p0", **NEW, container_id=None), BOTH, True, [], ""),
    ("the table does not name it", FRESH, BOTH, False, [], ""),
    ("marked, and the table does not name it", MARKED, BOTH, False, ["-p0"],
     "no longer linked: the peer table does not name it"),
    ("its container restarted", instance("p0", container_id="c2"), BOTH, True, ["-p0"],
     "no longer linked: its container restarted"),
    ("its container is gone", instance("p0", container_id=None), BOTH, True, [], ""),
    ("it leaves", instance("p0", **NEW, terminating=True), BOTH, True, [], ""),
    ("one of two restarted", two("c0", "c9"), BOTH, True, ["-p0-m0", "-p0-m1"], "restarted"),
    ("the other one, while the first has no container", two("c0", "c9", now=(None, "c1")), BOTH,
     True, ["-p0-m0", "-p0-m1"], "restarted"),
    ("the other one was never marked", two(None, "c9"), BOTH, True, ["-p0-m1"], "restarted"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "links", "named", "want", "says"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
@pytest.mark.invariant(1)
def test_what_is_marked_and_why(
    one: InstanceObs, links: Links, named: bool, want: list[str], says: str
) -> None:
    members = (one, DECODE)
    tab = table(MARKED, DECODE) if named else table(DECODE)
    seen = t.Observation(wanted("1P1D"), members, {0: tab}, links, {}, (), frozenset(), 0.0)
    draft = PlanDraft(fabric("p1 a  n1:8"))
    update_links(GroupView(0, members, tab), seen, draft)
    done = [
        ("+" if isinstance(a, t.MarkLinked) else "-") + a.name
        for a in draft.actions
        if isinstance(a, t.MarkLinked | t.MarkUnlinked)
    ]
    assert (done, len(done)) == (want, len(draft.actions))
    assert says in "; ".join(draft.reasons) if says else draft.reasons == []


def test_before_its_first_table_a_group_marks_nothing() -> None:
    seen = t.Observation(wanted("1P1D"), (FRESH,), {}, BOTH, {}, (), frozenset(), 0.0)
    draft = PlanDraft(fabric("p1 a  n1:8"))
    update_links(GroupView(0, (FRESH,), None), seen, draft)
    assert draft.actions == [] and draft.reasons == []
