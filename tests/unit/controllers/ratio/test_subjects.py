"""What is kept of scenarios between ticks is what reading them anew would give."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.controllers.ratio.test_ratio_loop import FAST, Scripted, healthy, make

from pdserve.controllers.ratio import subjects as module
from pdserve.controllers.ratio.subjects import Subject, Subjects
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.group_view import view_group
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.resource import PODS
from pdserve.telemetry.source import LiveInstances, ScenarioKey


class Watch:
    """Compares each tick's answers with fresh ones, and counts what was read for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ticks = self.views = 0
        self.live: list[LiveInstances] = []
        made, kept = Subjects.__init__, Subjects.live
        with_what: list[tuple[OperatorContext, float]] = []

        def init(subjects: Subjects, context: OperatorContext, window: float) -> None:
            with_what.append((context, window))
            made(subjects, context, window)

        async def live(
            subjects: Subjects, found: Mapping[ScenarioKey, Subject]
        ) -> Mapping[ScenarioKey, LiveInstances]:
            answer = await kept(subjects, found)
            reads = self.views
            fresh = Subjects(*with_what[-1])
            for key, subject in found.items():
                assert fresh.instances(subject) == subjects.instances(subject)
                assert answer[key] == fresh.instances(subject).live
                assert fresh.of_service(subject.service) == subjects.of_service(subject.service)
            self.views, self.ticks = reads, self.ticks + 1
            self.live += [given for given in answer.values() if given not in self.live[-1:]]
            return answer

        def view(*args: Any) -> Any:
            self.views += 1
            return view_group(*args)

        monkeypatch.setattr(Subjects, "__init__", init)
        monkeypatch.setattr(Subjects, "live", live)
        monkeypatch.setattr(module, "view_group", view)

    def measured(self) -> int:
        """Instances that the last tick asked about."""
        return len(self.live[-1].prefill | self.live[-1].decode)


@virtual_time
async def test_kept_answers_are_those_of_a_fresh_look(monkeypatch: pytest.MonkeyPatch) -> None:
    world, source, watch = make(), Scripted(), Watch(monkeypatch)
    source.say = healthy
    settings = replace(FAST, fast_period=5.0, window=60.0)
    async with world.running():
        task = asyncio.create_task(world.operate(None, source, settings))
        await world.until(world.service_ready)
        await asyncio.sleep(200)
        assert watch.measured() == 8
        ticks, views = watch.ticks, watch.views
        await asyncio.sleep(300)
        assert watch.ticks - ticks >= 55
        assert watch.views == views, "nothing changed"
        lost = world.instances()[0]["metadata"]["name"]
        world.kill(lost)
        await world.until(lambda: world.get(PODS, lost) is None)
        await world.until(world.service_ready)
        await asyncio.sleep(30)
        assert watch.measured() == 7, "its successor is cold"
        await asyncio.sleep(60)
        assert watch.measured() == 8
        assert watch.views > views
        task.cancel()
