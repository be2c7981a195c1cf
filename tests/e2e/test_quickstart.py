"""docs/quickstart.md on kind, from nothing to the end: each command, its output, its seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import quickstart

from localcluster import binaries, docker
from localcluster.commands import answer
from localcluster.errors import LocalError

pytestmark = pytest.mark.e2e

STEP_SECONDS = 1500.0
"""The first command builds three images and makes five nodes, on a new machine after
fetching what they are made of."""


@pytest.fixture
def engine(pytestconfig: pytest.Config) -> None:
    """A Docker engine without a cluster of the page's name."""
    if pytestconfig.getoption("--nodes") == "kubeconfig":
        pytest.skip("the page makes a kind cluster of its own; asked for was $KUBECONFIG")
    try:
        docker.check()
    except LocalError as error:
        pytest.skip(f"the page needs a Docker engine: {error}")
    if quickstart.CLUSTER in answer([str(binaries.kind()), "get", "clusters"]).split():
        pytest.skip(
            f"a kind cluster {quickstart.CLUSTER!r} runs, which the page would make and delete: "
            f"`kind delete cluster --name {quickstart.CLUSTER}`"
        )


@pytest.mark.timeout(1800)
def test_from_nothing_to_the_first_token_and_away(
    engine: None, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = quickstart.page_steps("kind", model=quickstart.WANTS_MODEL)
    commands = quickstart.first_token(found)
    with quickstart.reader(tmp_path) as terminal:
        done = quickstart.read(terminal, found, STEP_SECONDS)
    for ran in done:
        record_property(ran.step.command.partition("\n")[0], round(ran.seconds, 1))
    total = sum(ran.seconds for ran in done[:commands])
    print(f"{total:7.1f} s  from nothing to the first token, in {commands} commands")
    record_property("seconds to the first token", round(total, 1))
    assert commands <= quickstart.COMMANDS
    assert quickstart.CLUSTER not in answer([str(binaries.kind()), "get", "clusters"]).split()
