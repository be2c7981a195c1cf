"""Counting faults: which nodes are suspect, for how long, and when the next try is due."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import LEVELS, RESOURCE, draw
from tests.support.group_world import wanted
from tests.unit.groups.test_links_and_routes import instance

from pdserve.groups import types as t
from pdserve.groups.instances import Fault
from pdserve.groups.repairs import (
    BACKOFF_MAX,
    MAX_SUSPECTS,
    Suspects,
    clamp,
    count_faults,
    suspects,
    suspicion_ends,
    waits_until,
)
from pdserve.groups.view import PlanDraft
from pdserve.placement import NoFit
from pdserve.topology import Fabric, TreeSpec, build_fabric

NOW = 1_000_000.0


def fabric(away: str = "") -> Fabric:
    nodes = [replace(n, ready=n.name != away) for n in draw("p1 a  n1:8 n2:8 n3:8 n4:8")]
    return build_fabric(TreeSpec("test", LEVELS), nodes)


def fail(
    known: tuple[t.Repair, ...], fault: Fault, node: str, now: float, **more: object
) -> tuple[t.Repair, ...]:
    """The records after one more fault of slot p0."""
    lost = instance("p0", fault=fault, node=node, uid=f"uid-{now}", **more)
    seen = t.Observation(wanted("1P1D"), (lost,), {}, {}, {}, known, frozenset(), now)
    draft = PlanDraft(fabric())
    count_faults(seen, draft)
    return draft.repairs


def test_several_nodes_are_suspect_at_once_and_each_is_forgotten_in_its_time() -> None:
    repairs: tuple[t.Repair, ...] = ()
    for k, node in enumerate(["n1", "n2", "n3"]):
        repairs = fail(repairs, "Unschedulable", node, NOW + 60 * k)
    assert suspects(repairs, NOW + 121, fabric(), {}).avoided == ("n1", "n2", "n3")
    assert suspects(repairs, NOW + 1201, fabric(), {}).avoided == ("n2", "n3")
    assert suspicion_ends(repairs, NOW + 1201, fabric()) == pytest.approx(59)
    assert suspects(repairs, NOW + 1330, fabric(), {}) == Suspects(frozenset(), ())


def test_nodes_that_refused_are_tried_again_the_changed_first_then_the_oldest() -> None:
    repairs: tuple[t.Repair, ...] = ()
    for k, node in enumerate(["n3", "n2", "n4", "n1"]):
        repairs = fail(repairs, "Unschedulable", node, NOW + 60 * k)
    assert suspects(repairs, NOW + 200, fabric(), {}).avoided == ("n3", "n2", "n4", "n1")
    changed = {"n1": NOW + 181, "n4": NOW + 119, "n2": NOW + 61}
    bad = suspects(repairs, NOW + 200, fabric(), changed)
    assert bad.avoided == ("n2", "n1", "n3", "n4"), "n4 changed before it refused"


@pytest.mark.parametrize(
    ("free", "want"),
    [("n1 n5", "n5"), ("n1 n2 n3 n4", "n3"), ("n4 n1", "n1"), ("n4", "n4"), ("n9", None)],
)
def test_as_few_suspects_as_it_takes_are_tried_again_in_their_order(
    free: str, want: str | None
) -> None:
    bad = Suspects(frozenset({"n9"}), ("n3", "n2", "n1", "n4"))

    def find(exclude: frozenset[str]) -> str | NoFit:
        return next((n for n in free.split() if n not in exclude), NoFit("full"))

    found = bad.away_from(find)
    assert found == want if want else isinstance(found, NoFit)


@pytest.mark.parametrize(
    ("fault", "changed", "wait"),
    [
        ("Unschedulable", {}, 160), ("Unschedulable", {"n1": NOW + 1}, 30),
        ("NodeRefused", {}, 160), ("NodeRefused", {"n1": NOW + 1}, 30),
        ("Unschedulable", {"elsewhere": NOW + 1}, 160), ("Unschedulable", {"n4": NOW - 1}, 160),
        ("NodeLost", {"n1": NOW + 1}, 160),
    ],
)  # fmt: skip
def test_a_change_that_may_cure_a_refusal_shortens_the_wait(
    fault: str, changed: dict[str, float], wait: float
) -> None:
    refused = t.Repair("p0", 6, NOW, not_before=NOW + 160, fault=fault)
    assert waits_until(refused, changed, fabric()) - NOW == wait
    first = replace(refused, not_before=NOW + 10)
    assert waits_until(first, changed, fabric()) - NOW == 10, "never a longer one"


def test_suspects_are_bounded() -> None:
    repairs: tuple[t.Repair, ...] = ()
    for k in range(40):
        repairs = fail(repairs, "Unschedulable", f"n{k}", NOW + k)
    assert [s.node for s in repairs[0].suspects] == [f"n{k}" for k in range(40 - MAX_SUSPECTS, 40)]


@pytest.mark.parametrize("fault", ["NodeLost", "NodeDeleted"])
def test_a_node_that_is_ready_is_cleared_at_once(fault: Fault) -> None:
    repairs = fail((), fault, "n1", NOW)
    assert suspects(repairs, NOW + 1, fabric(away="n1"), {}).barred == {"n1"}
    assert suspects(repairs, NOW + 1, fabric(), {}).barred == frozenset()


@pytest.mark.parametrize(
    "sick", [{"unhealthy": frozenset({3})}, {"allocatable": {RESOURCE: 7}}], ids=["told", "taken"]
)
def test_a_node_whose_devices_are_well_again_is_only_avoided(sick: dict[str, Any]) -> None:
    """Else a second fault finds no node where the first one's is long well."""
    repairs = fail(fail((), "DeviceUnhealthy", "n1", NOW), "NodeLost", "n2", NOW + 100)
    nodes = draw("p1 a  n1:8 n2:8 n3:8 n4:8")
    nodes = [replace(n, **sick) if n.name == "n1" else n for n in nodes]
    lacking = build_fabric(TreeSpec("test", LEVELS), nodes)
    assert suspects(repairs, NOW + 101, lacking, {}) == Suspects(frozenset({"n1"}), ())
    assert suspects(repairs, NOW + 101, fabric(), {}) == Suspects(frozenset(), ("n1",))


def test_an_image_error_makes_no_node_suspect_however_often() -> None:
    repairs: tuple[t.Repair, ...] = ()
    for k in range(4):
        repairs = fail(repairs, "ImageError", f"n{k}", NOW + 100 * k)
    assert repairs[0].failures == 4
    assert repairs[0].suspects == ()
    assert repairs[0].not_before > NOW + 300


@pytest.mark.parametrize(
    "more", [{"terminating": True}, {"drain_started": NOW - 1}], ids=["deleted", "drained"]
)
def test_a_pod_on_its_way_out_is_no_fault_of_its_slot(more: dict[str, object]) -> None:
    assert fail((), "NodeLost", "n1", NOW, **more) == ()


@pytest.mark.parametrize(
    ("failures", "want"),
    [(1, 0.0), (2, 10.0), (3, 20.0), (6, 160.0), (7, BACKOFF_MAX), (20, 300.0), (5000, 300.0)],
)
def test_the_back_off_doubles_up_to_its_bound(failures: int, want: float) -> None:
    known = (t.Repair("p0", failures - 1, NOW - 60.0),) if failures > 1 else ()
    (repair,) = fail(known, "CrashLoop", "n1", NOW)
    assert (repair.failures, repair.not_before - NOW) == (failures, want)


def test_a_node_that_refuses_at_admission_is_avoided_from_the_first_time_on() -> None:
    """The pod never ran: the node is at fault, and the next try costs little."""
    lost = fail((), "PodFailed", "n1", NOW)
    refused = fail(lost, "NodeRefused", "n1", NOW + 1)
    assert suspects(refused, NOW + 1, fabric(), {}).avoided == ("n1",)
    assert refused[0].not_before - (NOW + 1) == 1.0
    again = fail(refused, "NodeRefused", "n2", NOW + 3)
    assert suspects(again, NOW + 3, fabric(), {}) == Suspects(frozenset(), ("n1", "n2"))
    assert again[0].not_before - (NOW + 3) == 2.0
    for k in range(4, 40):
        again = fail(again, "NodeRefused", "n2", NOW + k)
    assert again[0].not_before - (NOW + 39) == BACKOFF_MAX


@pytest.mark.parametrize(("ago", "want"), [(1799.0, 4), (1800.0, 1)])
def test_a_slot_that_kept_well_for_half_an_hour_starts_afresh(ago: float, want: int) -> None:
    (repair,) = fail((t.Repair("p0", 3, NOW - ago),), "CrashLoop", "n1", NOW)
    assert repair.failures == want


@pytest.mark.parametrize("failures", [1, 2, 3, 20])
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_no_wait_is_above_its_bound_when_the_clock_steps(failures: int, step: float) -> None:
    bound = {1: 0.0, 2: 10.0, 3: 20.0}.get(failures, BACKOFF_MAX)
    written = t.Repair(
        "p0", failures, NOW, (t.Suspect("n1", NOW, "Unschedulable"),), not_before=NOW + bound
    )
    now = NOW + step
    read = clamp(written, now)
    assert read.not_before - now <= bound + 1
    assert read.last_failure <= now
    assert read.suspects[0].time <= now
