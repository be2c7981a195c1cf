"""PodDisruptionBudgets of a ScenarioGroup's P/D groups: read from the cache, written on difference.

`groups.evictions` decides the content of each. From it, and from the members that are Ready, the
disruption controller computes how many may be evicted. The eviction API enforces that, also while
no operator runs. Instances that are not Ready may always be evicted.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.api import ScenarioGroup
from pdserve.controllers.shared.caches import Caches, owned_by
from pdserve.controllers.shared.owned import delete_owned, ensure
from pdserve.desired.compare import covers
from pdserve.desired.objects import owned_metadata
from pdserve.frozen import Memo
from pdserve.groups.observe import is_group_index
from pdserve.groups.types import DisruptionBudget
from pdserve.kube.client import KubeClient
from pdserve.kube.ownership import owner_reference
from pdserve.kube.resource import Object
from pdserve.terms.times import rfc3339, timestamp
from pdserve.wire import names


def known_budgets(caches: Caches, group: ScenarioGroup) -> Mapping[int, DisruptionBudget]:
    """The budgets that are there, by group index."""
    return {
        index: DisruptionBudget(least, timestamp(_since(obj)))
        for index, obj in _live(caches, group).items()
        if isinstance(least := obj.get("spec", {}).get("minAvailable"), int)
    }


async def keep_budgets(
    client: KubeClient,
    caches: Caches,
    obj: Object,
    group: ScenarioGroup,
    wanted: Mapping[int, DisruptionBudget],
) -> None:
    """Make the budgets as wanted, those that grow first, and delete those of no group.

    Raises:
        NotOursError: a foreign object has a name that is needed.
        KubeError: the API server refused.
    """
    known = {index: budget.least for index, budget in known_budgets(caches, group).items()}
    for index in sorted(wanted, key=lambda i: (wanted[i].least < known.get(i, 0), i)):
        budget = _budget(obj, group, index, wanted[index])
        await ensure(client, caches.disruption_budgets, budget, _same)
    for index, old in _live(caches, group).items():
        if index in wanted:
            continue
        await delete_owned(client, caches.disruption_budgets, old)


def _live(caches: Caches, group: ScenarioGroup) -> dict[int, Object]:
    found: dict[int, Object] = {}
    for obj in owned_by(caches.disruption_budgets, group.metadata):
        index = (obj["metadata"].get("labels") or {}).get(names.LABEL_GROUP_INDEX)
        if is_group_index(index):
            found[int(index)] = obj
    return found


def _same(live: Object, wanted: Object) -> bool:
    """As `covers`, but an annotation that is no longer wanted counts too."""
    return covers(live, wanted) and _since(live) == _since(wanted)


def _since(budget: Object) -> str | None:
    annotations = budget["metadata"].get("annotations") or {}
    found: str | None = annotations.get(names.ANNOTATION_CLOSED_SINCE)
    return found


_made: Memo[Object] = Memo(most=1024)


def _budget(obj: Object, group: ScenarioGroup, index: int, wanted: DisruptionBudget) -> Object:
    by = (group.metadata.namespace, group.metadata.name, group.metadata.uid, index, wanted)
    return _made.of(lambda: _render(obj, group, index, wanted), group.spec, by=by)


def _render(obj: Object, group: ScenarioGroup, index: int, wanted: DisruptionBudget) -> Object:
    """Needs whole numbers: percentages and `maxUnavailable` need a controller with a scale whose
    count is that of pods; a ScenarioGroup's is that of P/D groups.
    """
    spec, meta = group.spec, group.metadata
    name = names.budget_name(meta.name, index)
    metadata = owned_metadata(
        name, meta.namespace, spec.service, owner_reference(obj), "instance-budget"
    )
    metadata["labels"][names.LABEL_SCENARIO] = spec.scenario
    metadata["labels"][names.LABEL_GROUP_INDEX] = str(index)
    if wanted.since is not None:
        metadata["annotations"] = {names.ANNOTATION_CLOSED_SINCE: rfc3339(wanted.since)}
    selected = {
        names.LABEL_SERVICE: spec.service,
        names.LABEL_SCENARIO: spec.scenario,
        names.LABEL_GROUP_INDEX: str(index),
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {
            "minAvailable": wanted.least,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selected},
        },
    }
