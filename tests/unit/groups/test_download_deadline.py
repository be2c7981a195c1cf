"""Whether an instance whose engine has not started is late, while its weights are downloaded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.observed import classify

from pdserve.groups.health import HealthLimits

NOW = 1_000_000.0
LIMITS = HealthLimits(startup_deadline=300)
READY = [{"type": "Ready", "status": "True"}]
NODE: dict[str, Any] = {"metadata": {"name": "n1"}, "status": {"conditions": READY}}
BACKOFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "told"}}


def stamp(ago: float) -> str:
    return datetime.fromtimestamp(NOW - ago, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("container", "state", "fault", "recheck"),
    [
        ("pdserve-model", {"running": {"startedAt": stamp(8990)}}, None, None),
        (
            "pdserve-model",
            {"terminated": {"exitCode": 0, "finishedAt": stamp(30)}},
            None,
            270,
        ),
        (
            "pdserve-model",
            {"terminated": {"exitCode": 0, "finishedAt": stamp(300)}},
            "StartupDeadline",
            None,
        ),
        ("pdserve-model", BACKOFF, "StartupDeadline", None),
        ("wait-for-it", {"running": {}}, "StartupDeadline", None),
    ],
    ids=["runs", "ended a moment ago", "ended long ago", "fails again and again", "another hangs"],
)
def test_a_pod_is_late_by_what_its_download_does(
    container: str, state: dict[str, Any], fault: str | None, recheck: float | None
) -> None:
    pod = {
        "metadata": {"name": "p0", "uid": "u1", "creationTimestamp": stamp(9000)},
        "spec": {"nodeName": "n1", "containers": [{"name": "engine"}]},
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [{"name": container, "state": state}],
            "containerStatuses": [
                {"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}
            ],
        },
    }
    verdict = classify(pod, NODE, NOW, LIMITS)
    assert (verdict.fault, verdict.recheck_after) == (fault, recheck)
