"""Prefills that hold the beginning of a prompt are preferred where that saves time, never else."""

from __future__ import annotations

import itertools
import random
from array import array

import pytest
from tests.support import prefix_policies
from tests.support.dispatch_world import SLO
from tests.support.prefix_trace import Prompt, conversations
from tests.support.prefix_world import ideal_hits, play

from pdserve.forwarding.deadline import PrefillTimes
from pdserve.forwarding.dispatch import Dispatcher, Ticket
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint
from pdserve.wire.prefixes import PromptBlocks
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

PER_TOKEN = 0.001
BLOCK = 100
"""Tokens of one block here: 0.1 s."""


def prompt(*blocks: int) -> KnownPrompt:
    return KnownPrompt(PromptBlocks(array("Q", blocks), 1 / len(blocks)), BLOCK * len(blocks))


class Case:
    """Prefills with one slot each, in one group or in one each."""

    def __init__(
        self, prefills: int, groups: int = 1, decodes: int = 100,
        seconds: tuple[float, float] | None = (0.0, PER_TOKEN),
    ) -> None:  # fmt: skip
        made = [
            RouteGroup(
                g, "r",
                (
                    *(
                        RouteInstance(f"{g}p{n}", "prefill", f"http://{g}p{n}", 1)
                        for n in range(prefills)
                    ),
                    RouteInstance(f"{g}d", "decode", f"http://{g}d", decodes),
                ),
            )
            for g in range(groups)
        ]  # fmt: skip
        scenario = RouteScenario("s", SLO, tuple(made), prefill_seconds=seconds)
        self.view = View(scenario, {})
        self.prefills = [p for g in self.view.groups for p in g.prefills]
        draw = random.Random(4).random
        self.affinity = Affinity(self.view, PrefillTimes(), draw, 1000)
        self.room = Dispatcher(self.view, draw, affinity=self.affinity)
        self._epoch = itertools.count(1)

    def offer(self, known: KnownPrompt, deadline: float = 100.0) -> Ticket:
        ticket = self.room.offer(deadline, known)
        assert ticket is not None
        return ticket

    def serve(self, known: KnownPrompt, now: float) -> Instance:
        """Offer one request and send it at once."""
        self.offer(known)
        (send,) = self.room.step(now).sends
        return send.prefill

    def end(self, prefill: Instance, known: KnownPrompt, now: float, cached: int = 0) -> None:
        prefill.accepted(None, now, now - 0.5)
        self.affinity.prefilled(known, prefill, int(known.tokens), cached)
        prefill.released()

    def occupy(self, prefill: Instance, now: float, seconds: float) -> None:
        """Another gateway has its slot for so long."""
        prefill.hinted(Hint(0, 1, seconds, next(self._epoch)), now)


LONG = prompt(1, 2, 3, 4, 5)


def test_a_prompt_goes_where_its_beginning_is() -> None:
    case = Case(8)
    first = case.serve(LONG, 0.0)
    case.end(first, LONG, 1.0)
    for now in range(2, 12):
        other = case.serve(prompt(50 + now), now)  # the usual order: any free one
        case.end(other, prompt(50 + now), now + 0.5)
        again = prompt(1, 2, 3, 4, 90 + now)
        assert case.serve(again, now + 0.6) is first
        case.end(first, again, now + 0.9, cached=4 * BLOCK)


def test_a_request_waits_for_a_busy_prefill_only_where_it_ends_sooner() -> None:
    case = Case(3)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    case.occupy(holder, 2.0, 0.3)  # its hit saves 0.4 s or more
    ticket = case.offer(LONG)
    step = case.room.step(2.0)
    assert not step.sends
    assert step.wake_at == pytest.approx(2.3)
    assert [s.prefill for s in case.room.step(2.3).sends] == [holder]
    assert not ticket.waiting
    case.end(holder, LONG, 3.0, cached=4 * BLOCK)
    case.occupy(holder, 4.0, 0.6)
    assert case.serve(LONG, 4.0) is not holder


def test_a_wait_is_never_longer_than_what_the_hit_saves() -> None:
    case = Case(3)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    case.occupy(holder, 2.0, 0.3)
    case.offer(LONG)
    assert not case.room.step(2.0).sends
    case.occupy(holder, 2.2, 2.0)  # it takes longer than it said
    step = case.room.step(2.3)
    assert not step.sends
    assert step.wake_at == pytest.approx(2.5)
    (send,) = case.room.step(2.5).sends
    assert send.prefill is not holder


def test_waits_queue_by_what_is_ahead() -> None:
    """A hit saves 0.5 s; the prefill is busy for 0.2 s more and each hit takes 0.1 s there."""
    case = Case(10)
    known = prompt(1, 2, 3, 4, 5, 6)
    held = prompt(1, 2, 3, 4, 5)
    holder = case.serve(held, 0.0)
    case.end(holder, held, 1.0)
    case.occupy(holder, 2.0, 0.2)
    tickets = [case.offer(known) for _ in range(6)]
    sent = case.room.step(2.0).sends
    assert {s.ticket for s in sent} == set(tickets[3:])
    assert holder not in {s.prefill for s in sent}


def test_no_wait_passes_a_deadline() -> None:
    case = Case(3)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    case.occupy(holder, 2.0, 0.3)
    case.offer(LONG, deadline=2.2)
    (send,) = case.room.step(2.0).sends
    assert send.prefill is not holder


def test_those_behind_a_waiting_request_go_on_and_do_not_take_its_prefill() -> None:
    case = Case(2)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    (other,) = [p for p in case.prefills if p is not holder]
    case.occupy(holder, 2.0, 0.3)
    waits = case.offer(LONG, deadline=100.0)
    behind = [case.offer(prompt(70), 200.0), case.offer(prompt(71), 201.0)]
    assert [(s.ticket, s.prefill) for s in case.room.step(2.0).sends] == [(behind[0], other)]
    assert [(s.ticket, s.prefill) for s in case.room.step(2.3).sends] == [(waits, holder)]
    case.room.withdraw(behind[1])
    assert not case.room.room


def test_a_request_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    case = Case(2)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    case.occupy(holder, 2.0, 0.3)
    case.room.withdraw(case.offer(LONG))
    gone = case.offer(LONG)
    case.room.step(2.0)
    case.room.withdraw(gone)
    assert case.room.step(2.3).sends == []
    case.offer(prompt(9))
    case.offer(prompt(8))
    assert {s.prefill for s in case.room.step(2.4).sends} == set(case.prefills)


def test_a_prefill_that_failed_or_whose_group_is_full_is_not_preferred() -> None:
    case = Case(2)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    for _ in range(3):
        holder.sent(2.0)
        holder.failed("connect", 2.0)
    assert holder.health.ejected
    assert case.serve(LONG, 2.1) is not holder
    full = Case(1, groups=2, decodes=1)
    holder = full.serve(LONG, 0.0)
    full.end(holder, LONG, 1.0)
    (decode,) = full.view.groups[holder.group].decodes
    for _ in range(decode.total):
        decode.sent(1.0)
        decode.accepted(None, 1.0, 1.0)
    assert full.serve(LONG, 2.0) is not holder


def test_an_instance_that_left_the_table_is_not_preferred() -> None:
    case = Case(2)
    holder = case.serve(LONG, 0.0)
    case.end(holder, LONG, 1.0)
    case.occupy(holder, 2.0, 0.3)
    case.offer(LONG)
    case.room.step(2.0)
    group = case.view.scenario.groups[0]
    left = RouteGroup(0, "r", tuple(i for i in group.instances if i.id != holder.id))
    scenario = RouteScenario("s", SLO, (left,), prefill_seconds=(0.0, PER_TOKEN))
    case.view.update(scenario, {})
    case.affinity.follow()
    assert case.affinity.index.size == 0
    (send,) = case.room.step(2.5).sends
    assert send.prefill is not holder


def test_with_engines_that_find_nothing_the_usual_order_returns() -> None:
    case = Case(2)
    for now in range(60):
        holder = case.serve(LONG, now)
        case.end(holder, LONG, now + 0.5)
    case.occupy(holder, 60.0, 0.1)  # a hit would save 0.4 s
    assert case.serve(LONG, 60.0) is not holder


def test_a_gateway_that_has_seen_no_prefill_goes_by_reports() -> None:
    for _ in range(10):
        case = Case(8, seconds=None)
        holder = case.prefills[5]
        case.affinity.index.report(holder)
        case.affinity.index.reported(holder, reversed(LONG.blocks.digests))
        assert case.serve(LONG, 0.0) is holder


def test_one_that_reports_what_it_does_not_have_loses_its_own_preference_alone() -> None:
    case = Case(3)
    wrong, honest, _ = case.prefills
    index = case.affinity.index
    for prefill, known in ((wrong, LONG), (honest, prompt(11, 12, 13, 14, 15))):
        index.report(prefill)
        index.reported(prefill, reversed(known.blocks.digests))
    assert case.serve(LONG, 0.0) is wrong
    case.end(wrong, LONG, 0.5, cached=0)
    for now in range(1, 40):
        known = LONG if now % 2 else prompt(11, 12, 13, 14, 15)
        holder = case.serve(known, now)
        found = int(known.tokens) if holder is honest and known is not LONG else 0
        case.end(holder, known, now + 0.5, cached=found)
        index.reported(wrong, reversed(LONG.blocks.digests))
    assert case.affinity.trust_in(wrong) < 0.2
    assert case.affinity.trust_in(honest) == 1.0
    case.occupy(wrong, 60.0, 0.2)
    assert case.serve(LONG, 60.0) is not wrong  # a true hit would save 0.5 s
    case.occupy(honest, 61.0, 0.2)
    case.offer(prompt(11, 12, 13, 14, 15))
    assert not case.room.step(61.0).sends  # it waits for the true one


def test_without_hits_decisions_are_those_without_prefixes() -> None:
    """Prompts that share nothing: the same prefill gets each request, at the same time."""
    trace = [
        Prompt(p.at, p.session, array("Q", [n << 20 | i for i in range(len(p.blocks))]))
        for n, p in enumerate(conversations(300.0, 3.4, seed=2), 1)
    ]
    ours, usual = (play(trace, f, 6, 1000) for f in (prefix_policies.affine, prefix_policies.usual))
    assert ours.hits == usual.hits == 0
    assert ours.ttft == usual.ttft


def test_gateways_that_read_reports_find_what_one_finds_also_after_a_start() -> None:
    trace = conversations(600.0, 3.4, seed=3)
    one, own, many = (
        play(trace, policy, 6, 3000, gateways, restart_at=300.0)
        for policy, gateways in (
            (prefix_policies.reported, 1),
            (prefix_policies.affine, 4),
            (prefix_policies.reported, 4),
        )
    )
    assert many.hit_rate > 0.9 * one.hit_rate
    assert many.hit_rate > 1.5 * own.hit_rate
    assert many.mean_ttft < 0.95 * own.mean_ttft
    assert many.hit_rate_between(300.0, 500.0) > 1.5 * own.hit_rate_between(300.0, 500.0)


def test_conversations_find_more_and_answer_sooner() -> None:
    trace = conversations(900.0, 4.2, seed=5)
    assert 0.3 < ideal_hits(trace) < 0.45
    ours, usual = (play(trace, f, 6, 3000) for f in (prefix_policies.affine, prefix_policies.usual))
    assert ours.hit_rate > 2 * usual.hit_rate
    assert ours.mean_ttft < usual.mean_ttft
    assert ours.p90_ttft < usual.p90_ttft
