"""The ratio loop: measures all scenarios at once, decides for each, and records the decisions.

A tick: 1 query the metrics source for every scenario that has counts; 2 leave those alone for which
nothing changed (`rest`), learn and decide for the others (pure, `pdserve.ratio`); 3 append the
input and the decision to the log; 4 write new decisions into `ScenarioGroup.status.decisions`. The
PDService reconciler applies them: it takes its counts from the last Applied entry. While the source
is away nothing scales, and the list says so once, not at every tick. What is kept between ticks
(`LoopMemory`, learning) may be lost: a restart costs one slow round.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from pdserve.api import DecisionRecord, PDService
from pdserve.controllers.ratio.proposals import tell
from pdserve.controllers.ratio.rest import Rest, rest_after
from pdserve.controllers.ratio.schedules import Schedules
from pdserve.controllers.ratio.subjects import AT_ONCE, Subject, Subjects
from pdserve.controllers.shared import refusals
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.decision_writer import write_decision
from pdserve.controllers.shared.group_view import domain_of, view_group
from pdserve.controllers.shared.owned import ensure
from pdserve.controllers.shared.profiles import profile_in, profile_object, stored_state
from pdserve.controllers.shared.triggers import GROUP, service_key
from pdserve.desired import decisions
from pdserve.desired.proposals import (
    answer_of,
    approval_seconds,
    hold_of,
    pending_of,
    proposal_status,
)
from pdserve.desired.ratio_input import budget_for, expected_of, role_devices
from pdserve.desired.ratio_placement import placement_limit
from pdserve.desired.service_desired import bounds_of, fixed_of
from pdserve.desired.service_status import Attainment
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, owner_reference
from pdserve.kube.resource import ObjectKey
from pdserve.kube.workqueue import QueueKey
from pdserve.ratio import learn
from pdserve.ratio.decide import decide_placed
from pdserve.ratio.learn import LearnState
from pdserve.ratio.records import record
from pdserve.ratio.types import (
    Counts,
    Decision,
    DecisionInput,
    LoopMemory,
    LoopSettings,
    PastChange,
    PlacementLimit,
    ScenarioSample,
    Unknown,
    known,
)
from pdserve.telemetry.source import LiveInstances, MetricsSource, ScenarioKey
from pdserve.terms.json import JsonObject
from pdserve.terms.times import epoch_of
from pdserve.topology import fabric_spec

log = logging.getLogger(__name__)

PROFILE_PERIOD: Final = 60.0
"""Seconds between two writes of one learned profile."""
ATTAINMENT_PERIOD: Final = 60.0
"""Seconds between two updates of the attainment shown in status."""
HELD_PERIOD: Final = 60.0
"""Seconds between two entries that changed nothing, unless their reason is about data."""


class NoSource:
    """Stands where no Prometheus is configured: everything is unknown, and says why."""

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        """Unknown for every scenario."""
        return {key: Unknown("no Prometheus is configured (--prometheus-url)") for key in live}

    async def close(self) -> None:
        """Nothing to release."""


class RatioLoop:
    """Runs while this process leads."""

    def __init__(
        self,
        context: OperatorContext,
        source: MetricsSource,
        settings: LoopSettings,
        log_line: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """`log_line` takes each decision with its input as one JSON line."""
        self._context = context
        self._source = source
        self._settings = settings
        self._log_line = log_line
        self._memory: dict[ScenarioKey, LoopMemory] = {}
        self._learned: dict[ScenarioKey, LearnState] = {}
        self._saved: dict[ScenarioKey, float] = {}
        self._shown: dict[ScenarioKey, float] = {}
        self._failures: dict[ScenarioKey, int] = {}
        self._rests: dict[ScenarioKey, Rest] = {}
        self._schedules = Schedules()
        self._subjects = Subjects(context, settings.window)

    async def run(self) -> None:
        """Tick every fast period until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self.tick()
            except Exception:
                log.exception("A tick of the ratio loop failed; ratios stay as they are")
            elapsed = loop.time() - started
            await asyncio.sleep(max(self._settings.fast_period - elapsed, 0.1))

    async def tick(self) -> None:
        """One round over all scenarios; the event loop runs before each decision."""
        subjects = await self._subjects.listed()
        kept_by_scenario = (
            self._memory, self._learned, self._saved, self._shown, self._failures, self._rests,
        )  # fmt: skip
        for kept in kept_by_scenario:
            for gone in kept.keys() - subjects.keys():
                del kept[gone]
        self._schedules.keep(set(subjects))
        if not subjects:
            return
        samples = await self._samples(subjects)
        for number, (key, subject) in enumerate(subjects.items()):
            sample = samples.get(key, Unknown("the metrics source failed"))
            if not self._rests_still(key, subject, sample):
                await asyncio.sleep(0)
                await self._guarded(subject, sample)
            elif number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _rests_still(
        self, key: ScenarioKey, subject: Subject, sample: ScenarioSample | Unknown
    ) -> bool:
        rest, now = self._rests.get(key), self._context.now()
        period = self._settings.control_period
        return rest is not None and rest.lasts(now, period, subject.obj, subject.service, sample)

    async def _samples(
        self, subjects: Mapping[ScenarioKey, Subject]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        live = await self._subjects.live(subjects)
        try:
            return await self._source.sample(live)
        except Exception:
            log.exception("The metrics source failed; nothing scales")
            return {}

    async def _guarded(self, subject: Subject, sample: ScenarioSample | Unknown) -> None:
        """One scenario's round; what goes wrong with it becomes its condition Decided."""
        key = subject.key
        where = QueueKey(GROUP, key.namespace, subject.group.metadata.name)
        self._failures[key] = self._failures.get(key, 0) + 1
        try:
            await self._round(subject, sample)
            del self._failures[key]
            await refusals.went_well(self._context, where, refusals.DECIDED)
        except KubeError as error:
            log.warning("Ratio of %s: %s", where, error)
            if refusals.is_reported(error, self._failures[key]):
                await refusals.refused(self._context, where, error, refusals.DECIDED)
        except NotOursError as error:
            await refusals.not_ours(self._context, where, error, refusals.DECIDED)
        except Exception as error:
            # What was learned may be what cannot be computed with.
            self._learned.pop(key, None)
            self._memory.pop(key, None)
            await refusals.failed(self._context, where, error, "ratio", refusals.DECIDED)

    # --- one scenario ----------------------------------------------------------------------

    async def _round(self, subject: Subject, sample: ScenarioSample | Unknown) -> None:
        key = subject.key
        self._rests.pop(key, None)
        self._show_attainment(subject, sample)
        state = self._learned.get(key) or stored_state(
            self._context.caches.config_maps, subject.group
        )
        if isinstance(sample, ScenarioSample):
            state = learn.observe(state, sample)
        state = learn.observe_starts(state, self._subjects.instances(subject).starts)
        self._learned[key] = state
        settings, now = measured_settings(self._settings, state), self._context.now()
        windows = self._schedules.now(key, subject.scenario, settings, now)
        asked = replace(
            self._input(subject, sample, state), now=now, settings=settings, window=windows.floor
        )
        inp, decision = decide_placed(asked, partial(self._most, subject))
        # Raises where a figure is not finite, which ends the round before anything is scaled by it.
        self._log_line(record(inp, decision))
        labels = (key.service, key.scenario, decision.outcome, str(decision.reason))
        self._context.metrics.decisions.labels(*labels).inc()
        await self._record(subject, inp, decision)
        tell(self._context, subject, inp.pending, decision)
        self._memory[key] = decision.memory
        await self._save_profile(subject, state)
        until = windows.next_change
        rest = rest_after(decision.time, subject.obj, subject.service, sample, decision, until)
        if rest is not None:
            self._rests[key] = rest

    def _input(
        self, subject: Subject, sample: ScenarioSample | Unknown, state: LearnState
    ) -> DecisionInput:
        service, scenario, group = subject.service, subject.scenario, subject.group
        return DecisionInput(
            now=self._context.now(),
            service=service.metadata.name,
            scenario=scenario.name,
            mode=scenario.ratio.mode,
            bounds=bounds_of(scenario),
            slo=scenario.slo.value,
            current=subject.counts,
            ready_prefill=sum(g.prefill.ready for g in group.status.groups),
            ready_decode=sum(g.decode.ready for g in group.status.groups),
            sample=sample,
            prefill_devices=role_devices(service.spec.prefill),
            decode_devices=role_devices(service.spec.decode),
            fixed=fixed_of(scenario),
            profile=profile_in(state),
            expected=expected_of(scenario),
            budget=budget_for(service, scenario.name, self._wanted(service)),
            changes=self._changes(subject),
            memory=self._memory.get(subject.key, LoopMemory()),
            pending=pending_of(group),
            answer=answer_of(scenario),
            approval_seconds=approval_seconds(scenario),
            hold=hold_of(scenario),
        )

    def _changes(self, subject: Subject) -> tuple[PastChange, ...]:
        return tuple(
            PastChange(self._written(subject, d))
            for d in subject.group.status.decisions
            if d.outcome == "Applied" and decisions.counts_before(d) != decisions.counts_of(d)
        )

    def _written(self, subject: Subject, entry: DecisionRecord) -> float:
        """When a decision was made, on this process's clock."""
        return self._context.clock.written(subject.group.metadata.uid, epoch_of(entry.time))

    def _most(self, subject: Subject, counts: Counts) -> PlacementLimit | None:
        """Placement's answer for proposed counts; None where they can stand."""
        domain = domain_of(self._context.caches, subject.group.spec.fabric.domain_ref.name)
        if domain is None:
            return PlacementLimit(
                counts.prefill, counts.decode, subject.counts.groups, "the RoCEDomain is unknown"
            )
        fabric = self._context.taken.fabric(fabric_spec(domain))
        view = view_group(self._context, subject.group)
        return placement_limit(fabric, view, counts, self._context.volumes.reach)

    async def _record(self, subject: Subject, inp: DecisionInput, decision: Decision) -> None:
        """Write what is new of a round: an entry, and what waits for a person."""
        entry = self._entry(subject, decision)
        beside: JsonObject = {}
        if decision.pending != inp.pending or (
            decision.pending is None and subject.group.status.proposal is not None
        ):
            beside = {"proposal": proposal_status(decision.pending)}
        if entry is not None or beside:
            await write_decision(
                self._context.client, self._context.caches.groups, subject.obj, entry, beside
            )

    def _entry(self, subject: Subject, decision: Decision) -> JsonObject | None:
        """The entry of a round; None where it would say nothing new."""
        if decision.outcome == "Applied" and not decision.changes:
            return None
        new = decisions.entry(
            time=decision.time,
            before=decision.before,
            to=decision.to,
            outcome=decision.outcome,
            reason=str(decision.reason),
            message=decision.message,
            inputs=dict(decision.inputs),
        )
        old = decisions.newest(subject.group)
        if not decisions.is_news(old, new):
            return None
        if old is not None and decision.outcome == "Held" and old.outcome == "Held":
            about_data = "HoldNoData" in (old.reason, new["reason"])
            if not about_data and decision.time - self._written(subject, old) < HELD_PERIOD:
                return None
        return new

    async def _save_profile(self, subject: Subject, state: LearnState) -> None:
        now = self._context.now()
        due = now - self._saved.get(subject.key, 0.0) >= PROFILE_PERIOD
        if state.last_at is None or not due:
            return
        wanted = profile_object(subject.group, state, owner_reference(subject.obj))
        await ensure(self._context.client, self._context.caches.config_maps, wanted)
        self._saved[subject.key] = now

    def _show_attainment(self, subject: Subject, sample: ScenarioSample | Unknown) -> None:
        found = attainment_of(sample)
        meta = subject.group.metadata
        where = ObjectKey(meta.namespace, meta.name)
        now = self._context.now()
        before = self._context.attainment.get(where)
        target = subject.scenario.slo.attainment_percent
        crossed = before is None or _side(before, target) != _side(found, target)
        if not crossed and now - self._shown.get(subject.key, 0.0) < ATTAINMENT_PERIOD:
            return
        self._context.attainment[where] = found
        self._shown[subject.key] = now
        if before is None or before.percent != found.percent:
            self._context.queue.add(service_key(meta.namespace, subject.service.metadata.name))

    def _wanted(self, service: PDService) -> dict[str, Counts]:
        return {s.scenario.name: s.counts for s in self._subjects.of_service(service)}


def measured_settings(settings: LoopSettings, state: LearnState) -> LoopSettings:
    """The settings with the cold start that was measured, once one was."""
    seconds = state.cold_start()
    return settings if seconds is None else replace(settings, cold_start=seconds)


def attainment_of(sample: ScenarioSample | Unknown) -> Attainment:
    """Share of offered requests that met the SLO, over the longest window that was measured."""
    if isinstance(sample, Unknown):
        return Attainment(None, sample.reason)
    for window in reversed(sample.windows):
        if known(window.offered) and known(window.met) and window.offered > 0:
            percent = math.floor(10_000 * min(window.met, window.offered) / window.offered) / 100
            note = f"{window.offered:.0f} requests in {window.seconds:.0f} s"
            return Attainment(percent, note)
    return Attainment(None, "no requests were offered")


def _side(found: Attainment, target: float) -> bool | None:
    return None if found.percent is None else found.percent >= target
