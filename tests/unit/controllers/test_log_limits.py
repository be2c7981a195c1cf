"""Rule: what goes wrong for ever, or for a thousand objects at once, does not fill the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pdserve.controllers.log_limits import PLACE_BURST, PLACE_REFILL, SAME_BURST, Sparing
from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.errors import KubeError
from pdserve.kube.lines import say
from pdserve.kube.request import KubeRequest

LOG = logging.getLogger("pdserve.limits")


class Written(logging.Handler):
    """The lines that the filter lets through, against a clock that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lines: list[str] = []
        self.addFilter(Sparing(lambda: self.now))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def writing() -> Iterator[Written]:
    log, written = logging.getLogger("pdserve"), Written()
    before = log.level
    log.addHandler(written)
    log.setLevel(logging.DEBUG)
    try:
        yield written
    finally:
        log.removeHandler(written)
        log.setLevel(before)


def test_a_cause_that_stays_is_reported_and_then_seldom() -> None:
    with writing() as written:
        for tick in range(720):  # an hour of ticks of 5 s
            written.now = 5.0 * tick
            LOG.warning("ratio of %s: %s, again in %.1f s", "shop", "refused", tick)
        assert SAME_BURST < len(written.lines) <= SAME_BURST + 6
        assert "lines like this were left out" in written.lines[-1]
        LOG.warning("ratio of %s: %s, again in %.1f s", "other", "refused", 1)
        assert "other" in written.lines[-1], "another subject has lines of its own"


def test_many_subjects_do_not_fill_it_either() -> None:
    with writing() as written:
        for n in range(100_000):
            written.now = n / 1000
            LOG.warning("skipped %s %s: %s", "Pod", f"bad-{n}", "odd")
        assert len(written.lines) <= PLACE_BURST + 100 / PLACE_REFILL + 1


def test_deeds_and_details_are_all_written() -> None:
    with writing() as written:
        for n in range(1000):
            say(LOG, "placed", instance=f"i-{n}")
            LOG.debug("details")
        assert len(written.lines) == 2000


@pytest.mark.parametrize("plural", ["scenariogroups", "pdservices", "pods"])
@pytest.mark.parametrize("status", [409, 413])
@virtual_time
async def test_a_status_that_is_refused_for_ever_is_a_bounded_number_of_lines(
    plural: str, status: int
) -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    refuses = False

    def delay(request: KubeRequest) -> float:
        theirs = request.subresource == "status" and request.resource.plural == plural
        if refuses and theirs:
            raise KubeError(status, "Refused", "no status today")
        return 0.0

    world.delay = delay
    with writing() as written:
        async with world.running(), world.operator() as task:
            await world.until(world.service_ready, 60)
            refuses = True
            world.kill(sorted(world.routed())[0])
            for _ in range(120):
                await asyncio.sleep(30)
                written.now += 30
            assert not task.done()
        refused = [line for line in written.lines if "no status today" in line]
        assert 1 <= len(refused) <= 60, f"{len(refused)} lines in an hour"
