"""Which prompts decodes compute themselves: the rule of mode Auto, by cases, and its bounds."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

import pytest
from tests.support.dispatch_world import scenario

from pdserve.forwarding.deadline import HALF_LIFE, HandoffTime, PrefillTimes
from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.local_prefill import (
    LATE_HALF_LIFE,
    PAUSE_FIRST,
    PAUSE_MOST,
    LocalPrefills,
    LocalPrompt,
)
from pdserve.forwarding.prefix.affinity import KnownPrompt
from pdserve.forwarding.prefix.blocks import PromptBlocks
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint
from pdserve.wire.routes import LocalPrefillMode

PER_TOKEN = 0.001
HANDOFF = 0.1
"""Seconds: without load the crossover is at 100 tokens."""
PREFILL_SLOTS, DECODE_SLOTS = 2, 10


class Case:
    """P/D groups of so many decodes each, and a handoff that was seen at time 0."""

    def __init__(
        self,
        *decodes: int,
        mode: LocalPrefillMode = "Auto",
        most: int = 0,
        handoff: float = HANDOFF,
        slots: int = DECODE_SLOTS,
    ) -> None:
        groups = [([PREFILL_SLOTS], [slots] * n) for n in decodes or (1,)]
        made = replace(
            scenario(*groups), prefill_seconds=(0.02, PER_TOKEN), local_prefill=mode,
            local_prefill_tokens=most,
        )  # fmt: skip
        self.view = View(made, {})
        draw = random.Random(3).random
        self.times, self.handoff = PrefillTimes(), HandoffTime()
        if handoff:
            self.handoff.learn(handoff, 0.0)
        self.room = Dispatcher(self.view, draw)
        self.local = LocalPrefills(self.view, self.times, self.handoff, self.room, draw, 1000)
        self.prefills = [p for g in self.view.groups for p in g.prefills]
        self.decodes = [d for g in self.view.groups for d in g.decodes]

    def choose(
        self, tokens: float, cached: float = 0.0, left: float = 10.0, now: float = 0.0,
        known: KnownPrompt | None = None,
    ) -> Instance | None:  # fmt: skip
        return self.local.choose(LocalPrompt(tokens, cached, known), left, now)

    def occupy(self, decode: Instance, places: int, now: float = 0.0) -> None:
        """So many of a decode's places are in use."""
        total = DECODE_SLOTS + 2
        decode.hinted(Hint(total - places, total, 60.0, 1), now)

    def load(self, prefill: Instance, requests: int, now: float = 0.0) -> None:
        """So many requests are at a prefill, which has computed 1,000 tokens for each of late."""
        self.local.prefilled(1000, 0.02 + 1000 * PER_TOKEN, now)
        for _ in range(requests):
            prefill.sent(now)


def test_a_prompt_goes_where_it_delays_others_less_than_it_saves() -> None:
    assert Case().choose(99) is not None
    assert Case().choose(101) is None
    assert Case(handoff=0.4).choose(399) is not None
    assert Case(handoff=0.0).choose(1) is None, "nothing is known of handoffs"


def test_a_fuller_decode_takes_shorter_prompts_and_a_full_one_none() -> None:
    for places, longest in ((0, 100), (2, 80), (5, 50), (9, 10), (10, 0), (11, 0)):
        taken = []
        for tokens in (longest - 1, longest + 1):
            case = Case()
            case.occupy(case.decodes[0], places)
            taken.append(case.choose(tokens) is not None)
        assert taken == [longest > 0, False], places


@pytest.mark.parametrize("mode", ["Auto", "Fixed"])
def test_a_decode_without_places_computes_nothing(mode: LocalPrefillMode) -> None:
    """A route table may say so; requests go on by way of a prefill, and metrics are shown."""
    case = Case(1, mode=mode, most=100, slots=0)
    assert case.choose(1) is None
    assert case.local.crossover(0.0) == (0.0 if mode == "Auto" else 100.0)


def test_what_a_prefill_has_in_its_cache_speaks_for_it() -> None:
    assert Case().choose(90, cached=20) is None
    assert Case().choose(70, cached=20) is not None


def test_work_before_a_prefill_makes_longer_prompts_worth_it() -> None:
    """One in work: half a second is left of it on average."""
    for tokens, taken in ((590, True), (610, False)):
        case = Case()
        case.load(case.prefills[0], 1)
        assert (case.choose(tokens) is not None) == taken


def test_a_request_that_no_prefill_can_take_in_time_goes_to_a_decode() -> None:
    case = Case()
    case.load(case.prefills[0], 1)
    assert case.choose(5000, left=0.6) is None
    assert case.choose(5000, left=0.4) is not None


def test_where_decodes_are_short_prompts_do_not_take_their_places() -> None:
    """The prefill is idle, and waits for credit: a free moment belongs to those who wait."""
    case = Case()
    case.occupy(case.decodes[0], DECODE_SLOTS + 2)
    assert case.local.wait(0.0) is None
    assert case.choose(1, left=0.0) is None


def test_credit_that_those_in_prefill_need_is_not_given_away() -> None:
    case = Case(handoff=50.0)
    case.occupy(case.decodes[0], DECODE_SLOTS - 1)
    for _ in range(3):  # places to fetch ahead count
        case.prefills[0].hinted(Hint(9, 9, 0.0, 7), 0.0)
        case.prefills[0].sent(0.0)
    assert case.choose(10) is None


def test_without_a_profile_the_time_of_a_token_is_learned() -> None:
    case = Case()
    case.view.update(replace(case.view.scenario, prefill_seconds=None), {})
    assert case.choose(10) is None, "nothing was computed yet"
    case.times.learn(1000, 2.0)
    assert case.choose(49) is not None
    assert case.choose(51) is None


def test_prefills_that_are_late_of_late_make_it_worth_more_for_a_while() -> None:
    case = Case()
    for _ in range(200):
        case.local.prefilled(100, 0.02 + 0.1 + 0.3, 10.0)
    case.handoff.learn(HANDOFF, 10.0)
    assert case.local.crossover(10.0) == pytest.approx(400, rel=0.01)
    later = case.local.crossover(10.0 + LATE_HALF_LIFE)
    assert later == pytest.approx(250, rel=0.05)
    case.local.prefilled(100, 0.02 + 0.1, 1000.0)
    case.handoff.learn(HANDOFF, 1000.0)
    assert case.local.crossover(1000.0) == pytest.approx(100, rel=0.01)


def test_a_handoff_seen_long_ago_counts_less_so_that_one_is_tried() -> None:
    case = Case()
    assert case.choose(60, now=HALF_LIFE) is None
    assert case.choose(40, now=HALF_LIFE) is not None


def test_the_crossover_is_what_is_chosen_by() -> None:
    rng = random.Random(5)
    for _ in range(300):
        case = Case(handoff=rng.uniform(0.001, 2.0))
        case.occupy(case.decodes[0], rng.randrange(DECODE_SLOTS))
        if rng.random() < 0.5:
            case.load(case.prefills[0], rng.randrange(PREFILL_SLOTS))
        crossover = case.local.crossover(0.0)
        assert case.choose(crossover * 1.01 + 1e-9) is None
        assert case.choose(crossover * 0.99) is not None


@pytest.mark.parametrize(("tokens", "taken"), [(64, True), (64.5, False)])
def test_fixed_takes_a_length_whatever_the_load(tokens: float, taken: bool) -> None:
    case = Case(mode="Fixed", most=64, handoff=0.0)
    case.occupy(case.decodes[0], DECODE_SLOTS - 1)
    case.load(case.prefills[0], 1)
    assert (case.choose(tokens) is not None) == taken
    assert case.local.crossover(0.0) == 64
    assert not case.local.bounded


def test_a_decode_that_refuses_rests_longer_each_time_and_no_longer_than_the_bound() -> None:
    case, now = Case(), 0.0
    for times in range(8):
        case.local.refused(case.decodes[0], now)
        pause = min(PAUSE_MOST, PAUSE_FIRST * 2**times)
        assert case.choose(10, now=now + 0.99 * pause) is None
        now += 1.01 * pause
        chosen = case.choose(10, now=now)
        assert chosen is not None
        chosen.abandoned()
    case.local.accepted(case.decodes[0])
    case.local.refused(case.decodes[0], now)
    assert case.choose(10, now=now + 1.01 * PAUSE_FIRST) is not None


def test_others_are_asked_while_one_rests_or_cannot() -> None:
    case = Case(2, 1)
    case.local.refused(case.decodes[0], 0.0)
    case.local.unable(case.decodes[2])
    for _ in range(5):
        assert case.choose(10) is case.decodes[1]
    case.local.unable(case.decodes[1])
    assert case.choose(10) is None


def test_the_emptiest_decode_of_a_group_is_asked_and_each_group_is() -> None:
    case = Case(3, 3)
    for decode, places in zip(case.decodes, (5, 2, 7, 1, 6, 6), strict=True):
        case.occupy(decode, places)
    chosen = set()
    for _ in range(40):
        asked = case.choose(1)
        assert asked is not None
        asked.abandoned()
        chosen.add(asked.id)
    assert chosen == {"g0d1", "g1d0"}


def test_an_ejected_decode_is_not_asked() -> None:
    case = Case()
    case.decodes[0].sent(0.0)
    case.decodes[0].failed("connect", 0.0)
    assert case.choose(10) is None


def test_a_decode_that_left_the_table_is_forgotten() -> None:
    case = Case(2)
    for decode in case.decodes:
        case.local.refused(decode, 1e9)
    group = case.view.scenario.groups[0]
    kept = tuple(i for i in group.instances if i.id != "g0d1")
    case.view.update(replace(case.view.scenario, groups=(replace(group, instances=kept),)), {})
    case.local.follow(1000)
    assert case.choose(10) is None
    case.view.update(replace(case.view.scenario, groups=(group,)), {})
    case.local.follow(1000)
    chosen = case.choose(10)
    assert chosen is not None
    assert chosen.id == "g0d1"


# --- prompts that decodes have in their caches ----------------------------------------------------


def known(*blocks: int) -> KnownPrompt:
    return KnownPrompt(PromptBlocks(array("Q", blocks), 1 / len(blocks)), 100.0 * len(blocks))


def test_a_prompt_goes_on_where_its_beginning_was_computed() -> None:
    case = Case(3)
    first, second = known(1, 2, 3, 4), known(1, 2, 3, 4, 5)
    case.local.prefixes.prefilled(first, case.decodes[2], 400, 0)
    for _ in range(5):
        assert case.choose(500, known=second) is case.decodes[2]
    assert case.choose(500, known=known(7, 8, 9, 10, 11)) is None


def test_a_hit_that_no_decode_reports_is_soon_worth_nothing() -> None:
    case = Case(1, mode="Fixed", most=100)
    for n in range(40):
        prompt = known(1, 2, 3, 4, 10 + n)
        case.local.prefixes.prefilled(prompt, case.decodes[0], 500, 0)
    assert case.choose(500, known=known(1, 2, 3, 4, 99)) is None


def test_a_full_decode_with_a_hit_leaves_the_prompt_to_others() -> None:
    case = Case(2)
    prompt = known(1)
    case.local.prefixes.prefilled(prompt, case.decodes[0], 100, 0)
    case.occupy(case.decodes[0], DECODE_SLOTS)
    assert case.choose(90, known=prompt) is case.decodes[1]
