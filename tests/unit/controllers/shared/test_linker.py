"""When the linker pushes, polls and drains, in virtual time: reports per container, back-off."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.support.linker_values import KEY, TERMS, table

from pdserve.controllers.shared.instance_calls import EngineError, Target
from pdserve.controllers.shared.linker import Linker
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.resource import ObjectKey
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

Changed = list[ObjectKey]
"""Groups whose links or drains changed, in order."""


class Fake:
    """An EngineApi that needs no network, for virtual time."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.report = LinkReport(1, frozenset(), {"d0": "no"})
        self.busy = 1
        self.failing = False

    def _note(self, what: str) -> None:
        self.calls.append(what)
        if self.failing:
            raise EngineError("refused")

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        self._note(f"put {table.version}")

    async def get_links(self, target: Target) -> LinkReport:
        self._note("links")
        return self.report

    async def post_drain(self, target: Target) -> DrainReport:
        self._note("drain")
        return DrainReport(self.busy, 0, 0)


@asynccontextmanager
async def linking(fake: Fake, changed: Changed) -> AsyncIterator[Linker]:
    linker = Linker(fake, changed.append, period=1.0, max_period=8.0)
    task = asyncio.create_task(linker.run())
    try:
        yield linker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def target(**over: Any) -> Target:
    return Target(**{
        "instance": "p0", "container_id": "c1", "endpoint": "http://x", "service": "prod/shop",
        "engine": "Reference", "table": table(1), "poll": True, **over,
    })  # fmt: skip


@virtual_time
async def test_one_push_then_polls_until_settled_then_silence() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(3.5)
        assert fake.calls == ["put 1", "links", "links", "links", "links"]
        assert changed == [KEY], "the same report twice wakes no reconciler"
        fake.report = LinkReport(1, frozenset({"d0"}), {})
        await asyncio.sleep(1)
        assert changed == [KEY, KEY]
        linker.set_targets(KEY, [target(poll=False)])
        await asyncio.sleep(2)
        before = len(fake.calls)
        await asyncio.sleep(100)
        assert len(fake.calls) == before
        assert linker.attended == 0
        assert linker.links(KEY)["p0"].complete


@virtual_time
async def test_a_newer_table_is_pushed_at_once() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False)])
        await asyncio.sleep(10)
        linker.set_targets(KEY, [target(poll=False, table=table(2))])
        await asyncio.sleep(0.01)
        assert fake.calls[-2:] == ["put 2", "links"]


@virtual_time
async def test_what_was_reported_in_another_role_is_forgotten() -> None:
    fake = Fake()
    fake.busy = 0
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False, drain=True, role="decode")])
        await asyncio.sleep(3)
        assert linker.drains(KEY)["p0"].idle
        linker.set_targets(KEY, [target(poll=False, role="prefill")])
        assert dict(linker.drains(KEY)) == {}, "it was idle before it served in this role"
        await asyncio.sleep(3)
        assert fake.calls.count("put 1") == 2


@virtual_time
async def test_new_terms_are_pushed_with_the_same_table_and_once() -> None:
    fake = Fake()
    changed: Changed = []
    fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, TERMS.revision)
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False, terms=TERMS)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 1
        other = dataclasses.replace(TERMS, required=False)
        linker.set_targets(KEY, [target(poll=False, terms=other)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 2
        legacy = dataclasses.replace(other, known=frozenset({"p0"}))
        linker.set_targets(KEY, [target(poll=False, terms=legacy)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 2, "that a peer is known changes nothing"


@virtual_time
async def test_an_engine_that_holds_another_grant_gets_the_present_one_again() -> None:
    fake = Fake()
    changed: Changed = []
    fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, "of another operator")
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False, terms=TERMS)])
        await asyncio.sleep(3.5)
        assert fake.calls.count("put 1") >= 2
        fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, TERMS.revision)
        await asyncio.sleep(10)
        before = len(fake.calls)
        await asyncio.sleep(100)
        assert len(fake.calls) == before


@virtual_time
async def test_a_report_belongs_to_one_container() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(1)
        assert "p0" in linker.links(KEY)
        linker.set_targets(KEY, [target(container_id="c2")])
        assert linker.links(KEY) == {}
        await asyncio.sleep(1)
        assert fake.calls.count("put 1") == 2, "the new process knows no table"


@virtual_time
async def test_an_instance_that_does_not_answer_is_asked_less_and_less() -> None:
    fake = Fake()
    changed: Changed = []
    fake.failing = True
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(60)
        assert 6 <= len(fake.calls) <= 12
        assert changed == []
        fake.failing = False
        await asyncio.sleep(9)
        assert "p0" in linker.links(KEY)


@virtual_time
async def test_a_drain_is_asked_until_idle() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(drain=True, poll=False)])
        await asyncio.sleep(2.5)
        assert set(fake.calls) == {"drain", "put 1"}
        fake.busy = 0
        await asyncio.sleep(3)
        assert linker.drains(KEY)["p0"].idle
        before = len(fake.calls)
        await asyncio.sleep(50)
        assert len(fake.calls) == before


@virtual_time
async def test_a_draining_instance_is_given_new_tables() -> None:
    """Newcomers name it in theirs: until it knows them, their links to it stay down."""
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(drain=True)])
        await asyncio.sleep(2.5)
        linker.set_targets(KEY, [target(drain=True, table=table(2))])
        await asyncio.sleep(0.01)
        assert fake.calls[-1] == "put 2"
        fake.busy = 0
        await asyncio.sleep(3)
        linker.set_targets(KEY, [target(drain=True, table=table(3))])
        await asyncio.sleep(0.01)
        assert fake.calls[-1] == "put 3", "an idle one still serves what its table promises"


@virtual_time
async def test_forgetting_a_group_ends_its_tasks() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(1)
        linker.set_targets(KEY, ())
        before = len(fake.calls)
        await asyncio.sleep(20)
        assert len(fake.calls) == before
        assert linker.links(KEY) == {}


@virtual_time
async def test_silent_instances_of_one_namespace_hold_up_no_others() -> None:
    """Each of theirs takes the whole time-out; there are more of them than requests at once."""

    class Silent(Fake):
        async def get_links(self, target: Target) -> LinkReport:
            if target.instance.startswith("silent"):
                await asyncio.sleep(2)
                raise EngineError("TimeoutError")
            return await super().get_links(target)

    fake = Silent()
    changed: list[ObjectKey] = []
    async with linking(fake, changed) as linker:
        linker.set_targets(
            ObjectKey("slow", "shop-chat"),
            [target(instance=f"silent-{n}", container_id=f"s{n}", poll=True) for n in range(500)],
        )
        await asyncio.sleep(10)
        linker.set_targets(KEY, [target(poll=True)])
        await asyncio.sleep(0.5)
        assert linker.links(KEY)
        assert changed == [KEY]


@virtual_time
async def test_watched_instances_are_asked_once_in_a_period_each_at_its_time() -> None:
    fake, changed = Fake(), Changed()
    names = [f"d{i}" for i in range(4)]
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(instance=i, poll=False, watch=True) for i in names])
        await asyncio.sleep(5)
        changed.clear()
        fake.calls.clear()
        await asyncio.sleep(9)
        assert fake.calls == []
        await asyncio.sleep(2)
        assert fake.calls == ["links"]
        await asyncio.sleep(45)
        assert fake.calls == ["links"] * 4
        fake.report = LinkReport(1, frozenset(), {"d0": "no"}, pulls={"p0": 9})
        await asyncio.sleep(60)
        assert changed == [], "more pulls are no news"
        assert linker.links(KEY)["d3"].pulls == {"p0": 9}
        fake.report = LinkReport(1, frozenset(), {}, pulls={"p0": 9}, corrupt={"p0": 3})
        await asyncio.sleep(60)
        assert changed == [KEY] * 4
        assert linker.links(KEY)["d3"].corrupt == {"p0": 3}
        fake.failing = True
        await asyncio.sleep(60)
        assert linker.links(KEY)["d3"].corrupt == {"p0": 3}
        fake.failing = False
        fake.calls.clear()
        linker.set_targets(KEY, [target(poll=False)])
        await asyncio.sleep(200)
        assert fake.calls == ["put 1", "links"], "the others are gone"
