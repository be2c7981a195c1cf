"""A peer table that was lost: instances hold its version and take no lower one."""

from __future__ import annotations

import pytest
from tests.support.builders import fabric
from tests.support.group_world import wanted
from tests.unit.groups.test_links_and_routes import instance, table, up

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.tables import publish_table
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.wire.bounds import MAX_PASSED_VERSION
from pdserve.wire.links import LinkReport
from pdserve.wire.peers import PeerTable

NOW = 1_700_000_000.0


def published(
    members: tuple[InstanceObs, ...], held: PeerTable | None, links: dict[str, LinkReport]
) -> int | None:
    """Version of the table that is published; None where there is none."""
    tables = {} if held is None else {0: held}
    seen = t.Observation(wanted("1P1D"), members, tables, links, {}, (), frozenset(), NOW)
    draft = PlanDraft(fabric("p1 a  n1:8"))
    publish_table(GroupView(0, members, held), seen, draft)
    return next((a.table.version for a in draft.actions if isinstance(a, t.PublishTable)), None)


P0, D0 = instance("p0"), instance("d0")


@pytest.mark.parametrize(
    ("said", "wants"),
    [(0, None), (3, None), (4, 5), (900, 901), (MAX_PASSED_VERSION + 1, None)],
)
def test_a_table_passes_the_version_that_an_instance_holds(said: int, wants: int | None) -> None:
    held = PeerTable("g-0", 3, table(P0, D0).instances, fabric("p1 a  n1:8").spec.tier_costs)
    links = {"p0": up("d0", version=said), "d0": up("p0", version=3)}
    assert published((P0, D0), held, links) == wants


def test_a_lost_table_is_passed_even_where_no_instance_can_be_asked() -> None:
    linked_once = instance("p0", ever_linked=True)
    version = published((linked_once, D0), None, {})
    assert version is not None
    assert version > NOW - 1


def test_a_first_table_has_version_1() -> None:
    assert published((P0, D0), None, {}) == 1


def test_a_lost_table_passes_what_its_instances_say() -> None:
    linked_once = instance("p0", ever_linked=True)
    held = int(NOW) + 5_000
    assert published((linked_once, D0), None, {"p0": up("d0", version=held)}) == held + 1
