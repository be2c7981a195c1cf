"""Which decode takes a request whose KV waits."""

import math
import random

import pytest

from pdserve.forwarding.decode import DecodeWalk, GiveUp, Try, Wait, handoff_deadline
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.scenario_view import View
from pdserve.terms import Slo
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

SLO = Slo(1.0, 0.2, 0.05, 0.99)
HERE = {"leaf": "a", "node": "n1"}
COSTS = {"leaf": 1, "node": 0, "pod": 3}


def view(*decodes: dict[str, str]) -> View:
    instances = [RouteInstance("p", "prefill", "http://p", 2, HERE)]
    instances += [
        RouteInstance(f"d{i}", "decode", f"http://d{i}", 2, domains)
        for i, domains in enumerate(decodes)
    ]
    return View(RouteScenario("s", SLO, (RouteGroup(0, "r", tuple(instances)),)), COSTS)


def walk(v: View, deadline: float = 1.0) -> DecodeWalk:
    return DecodeWalk(v, v.groups[0].prefills[0], deadline, random.Random(1).random)


def asked(step: Try | Wait | GiveUp) -> Instance:
    assert isinstance(step, Try)
    return step.decode


def test_least_loaded_first_then_nearest() -> None:
    v = view({"leaf": "b"}, {"leaf": "a", "node": "n2"}, {"leaf": "a", "node": "n3"})
    loaded = v.groups[0].decodes[1]
    loaded.sent(0.0)
    w = walk(v)
    order = []
    for _ in range(3):
        decode = asked(w.next(0.0))
        decode.abandoned()
        order.append(decode.id)
    assert order == ["d2", "d0", "d1"]


DECODES = [
    ("one with a free place before one without", (0, 4, "a"), (1, 4, "b"), "d1"),
    ("the greater share of its places free", (2, 4, "a"), (3, 4, "b"), "d1"),
    ("a share, not a number: of many", (1, 4, "a"), (4, 8, "b"), "d1"),
    ("a share, not a number: of few", (3, 8, "a"), (2, 4, "b"), "d1"),
    ("as great: the nearest", (2, 4, "b"), (4, 8, "a"), "d1"),
]


@pytest.mark.parametrize(
    ("first", "second", "want"), [d[1:] for d in DECODES], ids=[d[0] for d in DECODES]
)
def test_which_decode_is_asked(
    first: tuple[int, int, str], second: tuple[int, int, str], want: str
) -> None:
    v = view(*({"leaf": leaf} for _, _, leaf in (first, second)))
    for one, (free, total, _) in zip(v.groups[0].decodes, (first, second), strict=True):
        one.hinted(Hint(free, total, 0.0, 1), 0.0)
    assert asked(walk(v).next(0.0)).id == want


def test_hop_cost_is_the_sum_over_levels_that_differ() -> None:
    v = view({"leaf": "b", "node": "n9", "pod": "z"}, HERE)
    prefill = v.groups[0].prefills[0]
    far, near = v.groups[0].decodes
    assert v.distance(prefill, far) == 4
    assert v.distance(prefill, near) == 0


def test_every_decode_is_asked_once_then_hints_set_the_time() -> None:
    v = view(HERE, HERE)
    w = walk(v)
    for i, free_in in enumerate((0.3, 0.1)):
        asked(w.next(0.0)).rejected(Hint(0, 4, free_in, i), 0.0)
    step = w.next(0.0)
    assert isinstance(step, Wait)
    assert step.until == pytest.approx(0.1)
    again = asked(w.next(0.1))
    assert again.next_try(0.1) <= 0.1


def test_a_stream_that_ends_here_makes_room_before_any_hint() -> None:
    v = view(HERE)
    decode = v.groups[0].decodes[0]
    decode.sent(0.0)
    decode.accepted(None, 0.0, 0.0)
    w = walk(v)
    asked(w.next(0.0)).rejected(Hint(0, 4, 2.0, 5), 0.0)
    assert isinstance(w.next(0.01), Wait)
    decode.released()
    assert asked(w.next(0.02)) is decode


@pytest.mark.parametrize("told", [True, False], ids=["hints", "no-hints"])
def test_the_walk_ends_at_its_deadline_at_a_bounded_number_of_attempts(told: bool) -> None:
    """Also where every hint says free and every answer is a refusal."""
    w = walk(view(HERE, HERE), deadline=30.0)
    now, asked_at = 0.0, []
    while not isinstance(step := w.next(now), GiveUp):
        if isinstance(step, Try):
            asked_at.append(now)
            hint = Hint(1, 4, 0.0, len(asked_at)) if told else None
            step.decode.rejected(hint, now)
        else:
            now = step.until
    assert (step.reason, now) == ("deadline", 30.0)
    assert len(asked_at) <= 2 * 2 + 4 + math.log(30.0 / 0.04) / math.log(1.25)
    assert asked_at[:2] == [0.0, 0.0], "every decode at once"
    assert asked_at[2] <= 0.05, "again soon"
    assert asked_at[-1] >= 30.0 / 1.3, "and up to the end"


def test_two_decodes_that_cannot_pull_mean_the_kv_is_lost() -> None:
    w = walk(view(HERE, HERE, HERE))
    for _ in range(2):
        asked(w.next(0.0)).abandoned()
        w.kv_failed()
    assert w.next(0.0) == GiveUp("kv_lost")
    single = walk(view(HERE))
    asked(single.next(0.0)).abandoned()
    single.kv_failed()
    assert single.next(0.0) == GiveUp("kv_lost")


def test_an_ejected_decode_is_not_asked_until_half_open() -> None:
    v = view(HERE, HERE)
    dead, alive = v.groups[0].decodes
    dead.sent(0.0)
    dead.failed("connect", 0.0)
    w = walk(v)
    assert asked(w.next(0.0)) is alive
    alive.rejected(Hint(0, 4, 2.0, 1), 0.0)
    step = w.next(0.0)
    assert isinstance(step, Wait)
    assert step.until == pytest.approx(0.5)
    assert asked(w.next(0.5)) is dead


def test_a_group_without_live_decodes_gives_up_if_another_has_some() -> None:
    groups = [
        RouteGroup(
            g, "r",
            (RouteInstance(f"p{g}", "prefill", f"http://p{g}", 1),
             RouteInstance(f"d{g}", "decode", f"http://d{g}", 1)),
        )
        for g in range(2)
    ]  # fmt: skip
    v = View(RouteScenario("s", SLO, tuple(groups)), {})
    w = walk(v)
    asked(w.next(0.0)).failed("connect", 0.0)
    assert w.next(0.0) == GiveUp("no_decode")
    left = walk(v)
    v.update(RouteScenario("s", SLO, (groups[1],)), {})
    assert left.next(0.0) == GiveUp("no_decode")


GROUP = view(HERE, HERE).scenario.groups[0]
PREFILL, *ITS_DECODES = GROUP.instances
ANOTHER = RouteInstance("d9", "decode", "http://d9", 2, HERE)
OTHERS = (RouteInstance("p9", "prefill", "http://p9", 2, HERE), ANOTHER)
LATER: dict[str, tuple[tuple[RouteInstance, ...] | None, set[str]]] = {
    "the group left": (None, {"d0", "d1"}),
    "its prefill left": (tuple(ITS_DECODES), {"d0", "d1"}),
    "a decode left": ((PREFILL, ITS_DECODES[1]), {"d1"}),
    "its decodes were replaced": ((PREFILL, ANOTHER), {"d9"}),
    "another group has its index": (OTHERS, {"d0", "d1"}),
}


@pytest.mark.parametrize(("instances", "want"), LATER.values(), ids=LATER.keys())
def test_kv_that_is_held_goes_to_a_decode_of_its_group(
    instances: tuple[RouteInstance, ...] | None, want: set[str]
) -> None:
    """A drain takes the decodes of a group that leaves when its prefills hold nothing any more."""
    v = view(HERE, HERE)
    w, elsewhere = walk(v), RouteGroup(7, "r2", OTHERS)
    now = () if instances is None else (RouteGroup(0, "r", instances),)
    v.update(RouteScenario("s", SLO, (*now, elsewhere)), {})
    found = set()
    while isinstance(step := w.next(0.0), Try):
        found.add(step.decode.id)
        step.decode.rejected(Hint(0, 4, 0.3, 1), 0.0)
    assert found == want
    assert step == Wait(0.3), "and it is asked again, as one that is routed"


def test_a_group_that_left_and_lost_its_decodes_is_given_up() -> None:
    v = view(HERE)
    w = walk(v)
    v.update(RouteScenario("s", SLO, (RouteGroup(7, "r2", OTHERS),)), {})
    asked(w.next(0.0)).failed("connect", 0.0)
    assert w.next(0.0) == GiveUp("no_decode")


@pytest.mark.parametrize(
    ("first_token", "want"), [(0.4, 1.2), (1.0, 1.2), (1.5, 1.7)], ids=["early", "due", "late"]
)
def test_handoff_deadline(first_token: float, want: float) -> None:
    assert handoff_deadline(0.0, 1.0, 0.2, first_token) == pytest.approx(want)


def test_a_decode_is_asked_twice_before_the_pace_of_a_request_holds_it_back() -> None:
    w, now = walk(view(HERE), deadline=10.0), 0.0
    asked_at: list[float] = []
    while len(asked_at) < 4:
        step = w.next(now)
        if isinstance(step, Wait):
            now = step.until
        else:
            asked(step).rejected(None, now)
            asked_at.append(now)
    assert asked_at == pytest.approx([0.0, 0.005, 0.015, 0.035])


def test_a_hint_is_worth_an_attempt_before_its_turn() -> None:
    w = walk(view(HERE), deadline=10.0)
    asked(w.next(0.0)).rejected(Hint(0, 4, 0.05, 1), 0.0)
    step = w.next(0.0)
    assert isinstance(step, Wait)
    assert step.until == pytest.approx(0.05)
