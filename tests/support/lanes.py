"""Which worker runs which tests: those that compute beside those that wait for processes.

A test of a cluster leaves more than half of a core idle, a unit test none. So the first of several
workers begins with the unit tests and the others with the rest, in the order of collection; a
worker whose own tests are all begun takes what is left of the others'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

COMPUTING = "tests/unit/"
"""Where tests compute most of their time."""
FIRST_WORKER = "gw0"
OWN_CLUSTER = (
    "test_local_control_plane.py",
    "test_operator_rights.py",
    "test_quickstart_page.py",
    "test_service_upgrade.py",
    "test_toy_engine.py",
)
"""Files of tests/cluster that make clusters of their own and share none."""


def scope_of(nodeid: str) -> str:
    """What one worker runs as a whole: all tests that share a cluster, or one file."""
    file = nodeid.split("::")[0]
    folder, _, name = file.rpartition("/")
    if folder != "tests/cluster" or name in OWN_CLUSTER:
        return file
    return "nodes alone" if name.startswith("test_local_") else "nodes and operator"


def next_scope(waiting: Iterable[str], *, computing: bool) -> str:
    """The first scope of the worker's kind, else the first of all; `waiting` is not empty."""
    scopes = tuple(waiting)
    own = (scope for scope in scopes if scope.startswith(COMPUTING) == computing)
    return next(own, scopes[0])


class Lanes(LoadScopeScheduling):
    """Hands out the scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        computing = node.gateway.id == FIRST_WORKER and self.numnodes > 1
        chosen = next_scope(self.workqueue, computing=computing)
        self.workqueue.move_to_end(chosen, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Several workers: the first one in a lane of its own."""
    return Lanes(config, log)
