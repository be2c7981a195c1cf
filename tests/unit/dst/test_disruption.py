"""The model of the disruption controller and of evictions: what the real ones do."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.dst.disruption import grant, status_of
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object

NOW, STAMP = 1000.0, "1970-01-01T00:16:40Z"


def pod(name: str, *, ready: bool = True, phase: str = "Running", **meta: Any) -> Object:
    owner = {"kind": "ScenarioGroup", "name": "shop-chat", "uid": "u", "controller": True}
    return {
        "metadata": {
            "name": name, "namespace": "x", "labels": {"app": "a"}, "ownerReferences": [owner],
            **meta,
        },
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }  # fmt: skip


def budget(status: Object | None = None, **spec: Any) -> Object:
    """One that selects every `pod`, at generation 2."""
    return {
        "metadata": {"name": "b", "namespace": "x", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, **spec},
        "status": status or {},
    }


PODS = [pod("p"), pod("q"), pod("r", ready=False), pod("s", deletionTimestamp=STAMP)]
SPECS = [
    ({"minAvailable": 2}, {}, (4, 2, 0)),
    ({"minAvailable": 1}, {}, (4, 1, 1)),
    ({"minAvailable": 5}, {}, (4, 5, 0)),
    ({"minAvailable": 0}, {}, (4, 0, 2)),
    ({"minAvailable": 0}, {"p": STAMP}, (4, 0, 1)),
    ({"minAvailable": 0}, {"p": "1970-01-01T00:14:00Z"}, (4, 0, 2)),
    ({"minAvailable": 0}, {"s": STAMP}, (4, 0, 2)),
    # A ScenarioGroup's scale counts P/D groups.
    ({"maxUnavailable": 1}, {}, (1, 0, 2)),
    ({"minAvailable": "50%"}, {}, (1, 1, 1)),
]


@pytest.mark.parametrize(("spec", "granted", "want"), SPECS)
def test_how_many_may_go(spec: Object, granted: dict[str, str], want: tuple[int, int, int]) -> None:
    """Expected and desired healthy pods, and disruptions allowed."""
    known = {"disruptedPods": granted}
    found = status_of(budget(known, **spec), PODS, lambda *_: 1, NOW, STAMP)
    told = (found["expectedPods"], found["desiredHealthy"], found["disruptionsAllowed"])
    assert told == want
    assert found["observedGeneration"] == 2


def test_no_pod_and_no_scale_allow_nothing() -> None:
    assert (
        status_of(budget(minAvailable=0), [], lambda *_: 1, NOW, STAMP)["disruptionsAllowed"] == 0
    )
    failed = status_of(budget(maxUnavailable=1), PODS, lambda *_: None, NOW, STAMP)
    assert failed["disruptionsAllowed"] == 0
    assert failed["conditions"][0]["reason"] == "SyncFailed"


def allowed(count: int, generation: int = 2) -> Object:
    return {"observedGeneration": generation, "disruptionsAllowed": count}


ALWAYS = {"unhealthyPodEvictionPolicy": "AlwaysAllow"}
EVICTIONS = [
    ("one is allowed", pod("p"), [budget(allowed(1))], None),
    ("none is", pod("p"), [budget(allowed(0))], 429),
    ("not counted yet", pod("p"), [budget()], 429),
    ("counted before the change", pod("p"), [budget(allowed(5, 1))], 429),
    ("two budgets", pod("p"), [budget(allowed(5))] * 2, 500),
    ("no budget", pod("p"), [], None),
    ("not started", pod("p", ready=False, phase="Pending"), [budget(allowed(0))], None),
    ("ended", pod("p", ready=False, phase="Failed"), [budget(allowed(0))], None),
    ("going", pod("p", deletionTimestamp=STAMP), [budget(allowed(0))], None),
    ("not Ready", pod("p", ready=False), [budget(allowed(0))], 429),
    ("not Ready, always", pod("p", ready=False), [budget(allowed(0), **ALWAYS)], None),
]


@pytest.mark.parametrize(
    ("target", "budgets", "want"), [c[1:] for c in EVICTIONS], ids=[c[0] for c in EVICTIONS]
)
def test_which_evictions_are_granted(
    target: Object, budgets: list[Object], want: int | None
) -> None:
    if want is None:
        grant(budgets, target, STAMP)
        return
    with pytest.raises(KubeError) as refused:
        grant(budgets, target, STAMP)
    assert refused.value.status == want


def test_a_grant_is_counted_at_once() -> None:
    granted = grant([budget(allowed(1))], pod("p"), STAMP)
    assert granted is not None
    _, status = granted
    assert (status["disruptionsAllowed"], status["disruptedPods"]) == (0, {"p": STAMP})
