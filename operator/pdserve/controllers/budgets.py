"""PodDisruptionBudgets of a ScenarioGroup's P/D groups: read from the cache, written on difference.

`groups.budgets` decides what each one asks for. The eviction API enforces it, also while no
operator runs. Instances that are not Ready may always be evicted.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.api import ScenarioGroup
from pdserve.controllers.caches import Caches, owned_by
from pdserve.controllers.objects import owned_metadata
from pdserve.controllers.owned import ensure
from pdserve.groups.observe import is_group_index
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import owner_reference
from pdserve.kube.resource import POD_DISRUPTION_BUDGETS, Object
from pdserve.wire import names


def known_budgets(caches: Caches, group: ScenarioGroup) -> Mapping[int, int]:
    """`minAvailable` of the budgets that are there, by group index."""
    found = {i: obj.get("spec", {}).get("minAvailable") for i, obj in _live(caches, group).items()}
    return {index: least for index, least in found.items() if isinstance(least, int)}


async def keep_budgets(
    client: KubeClient, caches: Caches, obj: Object, group: ScenarioGroup, wanted: Mapping[int, int]
) -> None:
    """Make the budgets as wanted, those that grow first, and delete those of no group.

    Raises:
        NotOursError: a stranger's object has a name that is needed.
        KubeError: the API server refused.
    """
    known = known_budgets(caches, group)
    for index in sorted(wanted, key=lambda i: (wanted[i] < known.get(i, 0), i)):
        await ensure(client, caches.disruption_budgets, _budget(obj, group, index, wanted[index]))
    for index, old in _live(caches, group).items():
        if index in wanted:
            continue
        meta = old["metadata"]
        try:
            await client.delete(
                POD_DISRUPTION_BUDGETS,
                meta["name"],
                namespace=meta["namespace"],
                uid=meta["uid"],
            )
        except KubeError as error:
            if not error.is_not_found:
                raise
        caches.disruption_budgets.observe_gone(old)


def _live(caches: Caches, group: ScenarioGroup) -> dict[int, Object]:
    found: dict[int, Object] = {}
    for obj in owned_by(caches.disruption_budgets, group.metadata):
        index = (obj["metadata"].get("labels") or {}).get(names.LABEL_GROUP_INDEX)
        if is_group_index(index):
            found[int(index)] = obj
    return found


def _budget(obj: Object, group: ScenarioGroup, index: int, least: int) -> Object:
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
            "minAvailable": least,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selected},
        },
    }
