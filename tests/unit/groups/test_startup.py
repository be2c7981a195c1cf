"""Which instance is at fault when instances answer but do not become Ready."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.group_world import wanted
from tests.unit.groups.test_links_and_routes import instance, table, up

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.startup import judge_startups

NOW = 10_000.0
DEADLINE = 900.0
LATE, EARLY = NOW - 901.0, NOW - 100.0


def starting(name: str, answers_since: float | None, **more: object) -> InstanceObs:
    """An instance that is not linked; None: its engine does not answer yet."""
    given: dict[str, object] = {"ready": False, "linked_container": None, **more}
    return replace(instance(name, **given), up_since=answers_since, startup_deadline=DEADLINE)


def judge(*instances: InstanceObs, behind: str = "") -> tuple[set[str], dict[str, float | None]]:
    """Names lost to StartupDeadline, and when each other wants to be looked at again."""
    links = {i.name: up(version=2 if i.name == behind else 3) for i in instances}
    seen = t.Observation(
        wanted("2P2D"), instances, {0: table(*instances)}, links, {}, (), frozenset(), NOW
    )
    judged = judge_startups(seen).instances
    lost = {i.name for i in judged if i.fault == "StartupDeadline"}
    assert {i.name for i in judged if i.fault_message} == lost, "each says why"
    return lost, {i.name: i.recheck_after for i in judged if i.name not in lost}


CASES = [
    ("its prefill loads for an hour", [starting("p0", None), starting("d0", LATE)], "", set()),
    ("its prefill answers at last", [starting("p0", EARLY), starting("d0", LATE)], "", set()),
    ("it has no prefill at all", [starting("d0", LATE)], "", set()),
    ("others are linked", [instance("p0"), instance("d1"), starting("d0", LATE)], "", {"d0"}),
    ("none is linked: one goes", [starting("p0", LATE), starting("d0", LATE)], "", {"d0"}),
    (
        "none is linked: the youngest goes",
        [starting("p0", LATE, created=5.0), starting("d0", LATE)],
        "",
        {"p0"},
    ),
    ("one took no table", [starting("p0", LATE), starting("d0", LATE)], "p0", {"p0"}),
    (
        "linked, but its own readiness fails",
        [instance("p0"), starting("d0", LATE, linked_container="c-d0")],
        "",
        {"d0"},
    ),
    (
        "it waited long for its prefill and was linked a moment ago",
        [instance("p0"), starting("d0", LATE, linked_container="c-d0", linked_since=EARLY)],
        "",
        set(),
    ),
    (
        "it was Ready until a moment ago",
        [
            instance("p0"),
            starting("d0", LATE, linked_container="c-d0", unready_since=EARLY),
        ],
        "",
        set(),
    ),
    ("a leaving prefill is not waited for",
     [starting("p0", LATE, terminating=True), starting("d0", LATE)], "", set()),
]  # fmt: skip


@pytest.mark.invariant(13)
@pytest.mark.parametrize(
    ("instances", "behind", "lost"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_only_its_own_failure_costs_an_instance(
    instances: list[InstanceObs], behind: str, lost: set[str]
) -> None:
    assert judge(*instances, behind=behind)[0] == lost


def test_a_running_deadline_is_looked_at_when_it_ends() -> None:
    _, checks = judge(starting("p0", EARLY), starting("d0", LATE))
    assert checks == {"p0": pytest.approx(800.0), "d0": pytest.approx(800.0)}


@pytest.mark.invariant(13)
def test_the_fault_stays_with_the_one_that_lost_its_table_entry() -> None:
    """Without it two instances took turns: each plan put one into the table and took out the
    other, for ever.
    """
    behind, other = starting("p0", LATE), starting("d0", LATE)
    links = {"p0": up(version=9), "d0": up(version=2)}
    seen = t.Observation(
        wanted("1P1D"), (behind, other), {0: table(other, version=3)}, links, {}, (), frozenset(),
        NOW,
    )  # fmt: skip
    lost = {i.name for i in judge_startups(seen).instances if i.fault == "StartupDeadline"}
    assert lost == {"p0"}
