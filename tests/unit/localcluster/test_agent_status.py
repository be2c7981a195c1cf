"""Pod status from container states: phases, conditions, readiness gates."""

from __future__ import annotations

from typing import Any

import pytest

from localcluster.agent.status import (
    LocalContainer,
    LocalPod,
    RunningState,
    State,
    TerminatedState,
    WaitingState,
    pod_status,
)

OLD, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z"
CREATING = WaitingState("ContainerCreating")
RUNS = RunningState(OLD, "process://1")


def ended(code: int) -> TerminatedState:
    return TerminatedState(code, "Error" if code else "Completed", OLD, NOW, "process://0")


def view(state: State, **more: Any) -> LocalContainer:
    more.setdefault("final", False)
    return LocalContainer(more.pop("name", "main"), "image", state, **more)


def status(
    *containers: LocalContainer,
    init: tuple[LocalContainer, ...] = (),
    gates: tuple[str, ...] = (),
    conditions: tuple[dict[str, Any], ...] = (),
    **more: Any,
) -> dict[str, Any]:
    pod = {
        "metadata": {"generation": 4},
        "spec": {"readinessGates": [{"conditionType": g} for g in gates]},
        "status": {"conditions": list(conditions)},
    }
    return pod_status(pod, LocalPod(containers, init, "127.1.1.9", "127.1.1.1", OLD, **more), NOW)


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
        ("back-off", [view(WaitingState("CrashLoopBackOff"), last=ended(3))], [], "Running"),
        ("all ended well", [DONE, DONE], [], "Succeeded"),
        ("one ended badly", [DONE, BAD], [], "Failed"),
        ("one ended, one runs", [DONE, READY], [], "Running"),
    ],
)
def test_phase(
    name: str, containers: list[LocalContainer], init: list[LocalContainer], want: str
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
        "observedGeneration": 4,
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


@pytest.mark.parametrize(
    ("containers", "reason", "initialized"),
    [([DONE], "PodCompleted", "PodCompleted"), ([DONE, BAD], "PodFailed", None)],
)
def test_an_ended_pod_says_how(
    containers: list[LocalContainer], reason: str, initialized: str | None
) -> None:
    report = status(*containers)
    assert get(report, "Ready")["reason"] == reason
    assert get(report, "ContainersReady")["reason"] == reason
    assert get(report, "Initialized")["status"] == "True"
    assert get(report, "Initialized")["reason"] == initialized
    assert get(report, "PodReadyToStartContainers")["status"] == "False"


def test_a_pod_that_the_node_ended_is_failed_while_its_containers_run() -> None:
    report = status(READY, failed=("DeadlineExceeded", "too long"))
    assert (report["phase"], report["reason"]) == ("Failed", "DeadlineExceeded")
    assert report["message"] == "too long"
    assert (get(report, "Ready")["status"], get(report, "Ready")["reason"]) == (
        "False", "PodFailed",
    )  # fmt: skip
    assert report["containerStatuses"][0]["ready"]


def test_the_address_is_reported_once_containers_may_start() -> None:
    before = status(view(CREATING), sandbox=False)
    # Null takes back an address that was reported before.
    assert (before["podIP"], before["podIPs"]) == (None, None)
    assert get(before, "PodReadyToStartContainers")["status"] == "False"
    after = status(view(CREATING))
    assert after["podIP"] == "127.1.1.9"
    assert after["podIPs"] == [{"ip": "127.1.1.9"}, {"$patch": "replace"}]
    assert get(after, "PodReadyToStartContainers")["status"] == "True"
    assert status(view(CREATING), sandbox=False, host_network=True)["podIP"] == "127.1.1.9"


def test_it_says_which_generation_it_is_of() -> None:
    report = status(READY)
    assert report["observedGeneration"] == 4
    assert {c["observedGeneration"] for c in report["conditions"]} == {4}


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
    waiting = view(WaitingState("CrashLoopBackOff", "back-off"), last=ended(3), restarts=2)
    report = status(READY, waiting, init=(view(ended(0), name="init", final=True),))
    first, second = report["containerStatuses"]
    assert first["state"] == {"running": {"startedAt": OLD}}
    assert (first["ready"], first["started"], first["containerID"]) == (True, True, "process://1")
    assert second["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert second["lastState"]["terminated"]["exitCode"] == 3
    assert second["containerID"] == "process://0"
    assert second["restartCount"] == 2
    assert first["image"] == first["imageID"] == "docker.io/library/image:latest"
    assert status(view(CREATING))["containerStatuses"][0]["image"] == "image"
    assert report["initContainerStatuses"][0]["ready"]
