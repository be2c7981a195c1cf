"""A person's word on counts, by the command that people use, against a real API server.

A window by clock that is always open gives the loop something to propose without any load.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support import scenarios as s
from tests.support.installed import (
    Installed,
    make_namespace,
    pdservice,
    ratio,
    scenario,
)

from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NAMESPACE = "approvals"
GROUP = names.scenario_group_name(NAMESPACE, "only")
PROGRAM = "import sys; from pdserve.cli.kubectl import main; sys.exit(main())"
ALWAYS = {
    "name": "always", "timeZone": "Asia/Shanghai", "from": "06:00", "to": "06:00",
    "least": {"prefill": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(installed: Installed) -> Iterator[s.Cluster]:
    found = installed.cluster
    make_namespace(found, NAMESPACE)
    only = scenario("only", ratio("Approve", most=2), groups={"min": 1, "max": 1})
    found.apply(pdservice(NAMESPACE, NAMESPACE, only | {"schedule": [ALWAYS]}), namespace=NAMESPACE)
    s.wait_service(found, NAMESPACE, NAMESPACE)
    yield found
    found.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def call(cluster: s.Cluster, *line: str) -> str:
    """Output of `kubectl pdserve`; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line, "-n", NAMESPACE,
         "--kubeconfig", str(cluster.kubeconfig)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def proposal(cluster: s.Cluster) -> s.Json | None:
    found = (s.group(cluster, NAMESPACE, GROUP) or {}).get("status", {}).get("proposal")
    return None if found is None or found["rejected"] else found


def test_a_change_waits_until_a_person_approves_and_can_be_undone(asked: s.Cluster) -> None:
    waits = s.until("a proposal", lambda: proposal(asked), 60)
    assert (waits["reason"], waits["to"]["prefill"]) == ("TidalWindow", 2)
    assert s.counts(asked, NAMESPACE, GROUP) == (1, 1, 1)
    assert waits["id"] in s.events(asked, NAMESPACE, "ChangeProposed")[-1]["note"]
    screen = call(asked, "status", NAMESPACE)
    assert f"{waits['id']}: 1x(1P1D) -> 1x(2P1D)" in screen
    assert "always is open until" in screen

    call(asked, "approve", NAMESPACE, "only", "--proposal", waits["id"])
    s.until("the change", lambda: s.counts(asked, NAMESPACE, GROUP) == (1, 2, 1), 30)
    s.wait_settled(asked, NAMESPACE, GROUP)
    assert proposal(asked) is None

    assert "1x(2P1D) -> 1x(1P1D)" in call(asked, "undo", NAMESPACE, "only")
    s.until("the counts before", lambda: s.counts(asked, NAMESPACE, GROUP) == (1, 1, 1), 30)
    s.wait_settled(asked, NAMESPACE, GROUP)
    applied = [d for d in s.decisions(asked, NAMESPACE, GROUP) if d["outcome"] == "Applied"]
    assert applied[-1]["reason"] == "OnHold"
    assert proposal(asked) is None, "nothing is proposed while the counts are held"

    call(asked, "undo", NAMESPACE, "only", "--end")
    again = s.until("another proposal", lambda: proposal(asked), 60)
    assert again["id"] != waits["id"]
    call(asked, "reject", NAMESPACE, "only")
    s.until("it is rejected", lambda: proposal(asked) is None, 30)
    assert s.counts(asked, NAMESPACE, GROUP) == (1, 1, 1)
