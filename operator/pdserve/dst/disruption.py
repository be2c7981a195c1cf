"""PodDisruptionBudgets as Kubernetes 1.36 keeps them: the disruption controller, and evictions.

These details are modelled because a budget that looks right can refuse every eviction for ever:
  - the controller computes `status` some time after a change; the eviction API uses only a
    status of the present generation, and answers 429 otherwise;
  - a pod is healthy if it is Ready, is not being deleted, and was not granted an eviction in the
    last two minutes;
  - with `maxUnavailable` or a percentage the expected count is the sum of the scales of the pods'
    controllers: a ScenarioGroup's scale counts P/D groups, not pods;
  - two budgets for one pod are an error, not a refusal;
  - a pod that has not started, has ended or is being deleted is evicted without a look at budgets;
    for one that runs and is not Ready `unhealthyPodEvictionPolicy` decides.
Source: kubernetes/pkg/controller/disruption and pkg/registry/core/pod/storage/eviction.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.times import epoch_of

GRANT_SECONDS = 120.0
"""A granted eviction counts for so long while the pod is still there."""

ScaleOf = Callable[[JsonMap, str], int | None]
"""Controller reference and namespace -> replicas of its scale; None: it has none."""


def covers(budget: Object, pod: Object) -> bool:
    """Whether the budget selects the pod (`matchLabels` only)."""
    meta, selector = pod["metadata"], budget.get("spec", {}).get("selector")
    if selector is None or meta.get("namespace") != budget["metadata"]["namespace"]:
        return False
    wanted: dict[str, str] = selector.get("matchLabels") or {}
    return wanted.items() <= (meta.get("labels") or {}).items()


class PodIndex:
    """Pods by namespace and label: of thousands, each budget looks at a few."""

    def __init__(self, pods: Iterable[Object]) -> None:
        self._found: dict[tuple[str, str, str], list[Object]] = {}
        self._spaces: dict[str, list[Object]] = {}
        for pod in pods:
            meta = pod["metadata"]
            space = meta.get("namespace", "")
            self._spaces.setdefault(space, []).append(pod)
            for key, value in (meta.get("labels") or {}).items():
                self._found.setdefault((space, key, value), []).append(pod)

    def perhaps(self, budget: Object) -> list[Object]:
        """Those that the budget may select, and few others."""
        space = budget["metadata"]["namespace"]
        wanted = (budget.get("spec", {}).get("selector") or {}).get("matchLabels") or {}
        lists = [self._found.get((space, key, value), []) for key, value in wanted.items()]
        return min(lists, key=len) if lists else self._spaces.get(space, [])


def status_of(
    budget: Object, pods: Iterable[Object], scale: ScaleOf, now: float, stamp: str
) -> JsonObject:
    """The status that the disruption controller writes.

    `scale`: how many pods the owner wants. `now` in seconds since the epoch, `stamp` the same as
    objects carry it.
    """
    spec, known = budget.get("spec", {}), budget.get("status", {})
    mine = [p for p in pods if covers(budget, p)]
    names = {p["metadata"]["name"]: p for p in mine}
    granted = {
        name: at
        for name, at in known.get("disruptedPods", {}).items()
        if name in names
        and "deletionTimestamp" not in names[name]["metadata"]
        and now - epoch_of(at) < GRANT_SECONDS
    }
    healthy = sum(is_ready(p) and p["metadata"]["name"] not in granted for p in mine)
    status: JsonObject = {
        "observedGeneration": budget["metadata"]["generation"],
        "currentHealthy": healthy,
        "disruptedPods": granted,
    }
    try:
        expected, desired = _wanted(spec, mine, scale)
    except LookupError as error:
        failed = {
            "type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed",
            "message": str(error), "lastTransitionTime": stamp,
        }  # fmt: skip
        return {**known, "disruptionsAllowed": 0, "conditions": [failed]}
    allowed = max(0, healthy - desired) if expected > 0 else 0
    return {
        **status,
        "expectedPods": expected,
        "desiredHealthy": desired,
        "disruptionsAllowed": allowed,
    }


def grant(budgets: Iterable[Object], pod: Object, stamp: str) -> tuple[Object, Object] | None:
    """Decide on an eviction: the budget that it uses up with its new status, or None without one.

    Raises:
        KubeError: 429 when a budget does not allow it now, 500 with several budgets.
    """
    meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
    if "deletionTimestamp" in meta or phase in ("Pending", "Succeeded", "Failed"):
        return None
    mine = [b for b in budgets if covers(b, pod)]
    if len(mine) > 1:
        message = "This pod has more than one PodDisruptionBudget"
        raise KubeError(500, "InternalError", message)
    if not mine:
        return None
    (budget,) = mine
    status, spec = budget.get("status", {}), budget["spec"]
    if not is_ready(pod):
        enough = status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0
        if spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow" or enough:
            return None
    if status.get("observedGeneration", 0) < budget["metadata"]["generation"]:
        message = "The disruption budget is still being processed by the server."
        raise KubeError(429, "TooManyRequests", message)
    if status.get("disruptionsAllowed", 0) <= 0:
        message = "Cannot evict pod as it would violate the pod's disruption budget."
        raise KubeError(429, "TooManyRequests", message)
    used = {
        **status,
        "disruptionsAllowed": status["disruptionsAllowed"] - 1,
        "disruptedPods": {**status.get("disruptedPods", {}), meta["name"]: stamp},
    }
    return budget, used


def is_ready(pod: Object) -> bool:
    """Whether a pod is Ready and not being deleted."""
    conditions = pod.get("status", {}).get("conditions", ())
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _wanted(spec: Object, pods: list[Object], scale: ScaleOf) -> tuple[int, int]:
    """Expected and desired healthy pods.

    Raises:
        LookupError: a scale is needed, and a controller has none.
    """
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if isinstance(least, int):
        return len(pods), least
    expected, seen = 0, set()
    for pod in pods:
        owners = pod["metadata"].get("ownerReferences", ())
        owner = next((o for o in owners if o.get("controller")), None)
        if owner is None or owner["uid"] in seen:
            continue
        seen.add(owner["uid"])
        count = scale(owner, pod["metadata"]["namespace"])
        if count is None:
            raise LookupError(f"{owner['kind']} {owner['name']} has no scale")
        expected += count
    if most is not None:
        return expected, max(0, expected - _share(most, expected))
    return expected, _share(least, expected)


def _share(value: int | str | None, total: int) -> int:
    if isinstance(value, str):
        return math.ceil(int(value.removesuffix("%")) * total / 100)
    return value or 0
