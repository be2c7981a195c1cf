"""Pod status from container states: phases, conditions, readiness gates."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.local.agent.status import (
    ContainerView,
    PodView,
    Running,
    State,
    Terminated,
    Waiting,
    pod_status,
)

OLD, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z"
CREATING = Waiting("ContainerCreating")
RUNS = Running(OLD, "process://1")


def ended(code: int) -> Terminated:
    return Terminated(code, "Error" if code else "Completed", OLD, NOW, "process://0")


def view(state: State, **more: Any) -> ContainerView:
    more.setdefault("final", False)
    return ContainerView(more.pop("name", "main"), "image", state, **more)


def status(
    *containers: ContainerView,
    init: tuple[ContainerView, ...] = (),
    gates: tuple[str, ...] = (),
    conditions: tuple[dict[str, Any], ...] = (),
    rejected: tuple[str, str] | None = None,
) -> dict[str, Any]:
    pod = {
        "metadata": {},
        "spec": {"readinessGates": [{"conditionType": g} for g in gates]},
        "status": {"conditions": list(conditions)},
    }
    return pod_status(pod, PodView(containers, init, "127.1.1.9", "127.1.1.1", OLD, rejected), NOW)


def get(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status["conditions"] if c["type"] == kind), {})


DONE, BAD = view(ended(0), final=True), view(ended(3), final=True)
READY = view(RUNS, ready=True, started=True)


@pytest.mark.parametrize(
    ("name", "containers", "init", "want"),
    [
        ("creating", [view(CREATING)], [], "Pending"),
        ("running", [READY], [], "Running"),
        ("running, not ready", [view(RUNS)], [], "Running"),
        ("one of two still creating", [READY, view(CREATING)], [], "Pending"),
        ("init runs", [view(CREATING)], [view(RUNS)], "Pending"),
        ("init failed, tried again", [view(CREATING)], [view(ended(1))], "Pending"),
        ("init failed for good", [view(CREATING)], [BAD], "Failed"),
        ("init done", [READY], [DONE], "Running"),
        ("between restarts", [view(ended(3))], [], "Running"),
        ("back-off", [view(Waiting("CrashLoopBackOff"), last=ended(3))], [], "Running"),
        ("all ended well", [DONE, DONE], [], "Succeeded"),
        ("one ended badly", [DONE, BAD], [], "Failed"),
        ("one ended, one runs", [DONE, READY], [], "Running"),
    ],
)
def test_phase(
    name: str, containers: list[ContainerView], init: list[ContainerView], want: str
) -> None:
    assert status(*containers, init=tuple(init))["phase"] == want


def test_ready_needs_every_container() -> None:
    report = status(READY, view(RUNS, name="side"))
    assert get(report, "ContainersReady")["status"] == "False"
    assert get(report, "Ready") == {
        "type": "Ready",
        "status": "False",
        "reason": "ContainersNotReady",
        "message": "containers with unready status: [side]",
        "lastTransitionTime": NOW,
    }


@pytest.mark.parametrize(
    ("conditions", "ready", "message"),
    [
        ((), "False", 'corresponding condition of pod readiness gate "x/Linked" does not exist.'),
        (
            ({"type": "x/Linked", "status": "False"},),
            "False",
            '"x/Linked" is not "True", but False',
        ),
        (({"type": "x/Linked", "status": "True"},), "True", ""),
    ],
)
def test_readiness_gates(conditions: tuple[dict[str, Any], ...], ready: str, message: str) -> None:
    report = status(READY, gates=("x/Linked",), conditions=conditions)
    assert get(report, "Ready")["status"] == ready
    assert message in (get(report, "Ready")["message"] or "")
    assert get(report, "ContainersReady")["status"] == "True"
    assert get(report, "x/Linked") == {}, "gates belong to others"


def test_a_completed_pod_says_so() -> None:
    report = status(DONE)
    assert get(report, "Ready")["reason"] == "PodCompleted"
    assert get(report, "ContainersReady")["reason"] == "PodCompleted"


def test_transition_times_move_only_with_the_status() -> None:
    before = (
        {"type": "Ready", "status": "True", "lastTransitionTime": OLD},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": OLD},
    )
    report = status(READY, conditions=before)
    assert get(report, "Ready")["lastTransitionTime"] == OLD
    assert get(report, "ContainersReady")["lastTransitionTime"] == NOW


def test_a_rejected_pod_is_failed_with_the_reason() -> None:
    report = status(rejected=("OutOfpods", "full"))
    assert (report["phase"], report["reason"], report["message"]) == ("Failed", "OutOfpods", "full")


def test_container_statuses() -> None:
    waiting = view(Waiting("CrashLoopBackOff", "back-off"), last=ended(3), restarts=2)
    report = status(READY, waiting, init=(view(ended(0), name="init", final=True),))
    first, second = report["containerStatuses"]
    assert first["state"] == {"running": {"startedAt": OLD}}
    assert (first["ready"], first["started"], first["containerID"]) == (True, True, "process://1")
    assert second["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert second["lastState"]["terminated"]["exitCode"] == 3
    assert second["containerID"] == "process://0"
    assert second["restartCount"] == 2
    assert report["initContainerStatuses"][0]["ready"]
