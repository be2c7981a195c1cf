"""The template of every revision in use, kept as ControllerRevisions of the ScenarioGroup.

A ScenarioGroup's spec holds one template, but during a rollout its groups run two. An old group
that loses an instance must get it back at its old template; with the new one, a bad revision would
turn the next ordinary fault into an outage. As a StatefulSet does, the operator therefore keeps
one ControllerRevision per revision with pods. The ScenarioGroup owns it. When no pod has the
revision any more it is history, of which the newest are kept for `kubectl pdserve rollout undo`.

A ScenarioGroup from before this feature gets its first one at the next reconciliation. A stored
template is used only if it has the hash in its name. Neighbours: `group_view` shows the stored
revisions to the planner, `group_actions` renders from them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from pdserve.api import InvalidObjectError, ScenarioGroup, revision_of
from pdserve.api.scenariogroup import GroupRole, ScenarioGroupSpec
from pdserve.controllers.shared.caches import Caches, owned_by
from pdserve.controllers.shared.owned import delete_owned
from pdserve.desired.objects import owned_metadata
from pdserve.frozen import Memo
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, is_controlled_by, owner_reference
from pdserve.kube.resource import CONTROLLER_REVISIONS, Object
from pdserve.terms.json import JsonMap
from pdserve.wire import names

log = logging.getLogger(__name__)

COMPONENT: Final = "revision"
HISTORY: Final = 10
"""Revisions without pods that are kept, the newest ones, so that a rollout can be undone."""
_PARTS: Final = ("service", "scenario", "model", "engine", "prefill", "decode")
_NOT_OF_THE_POD: Final = ("replicas", "startupDeadlineSeconds")


def stored_revisions(caches: Caches, group: ScenarioGroup) -> Mapping[str, ScenarioGroup]:
    """The ScenarioGroup as it was at each stored revision, by revision.

    What does not change a pod (counts, locality, recovery, startup deadline) is as it is now.
    """
    stored = owned_by(caches.revisions, group.metadata)
    return _read.of(lambda: _read_all(group, stored), group, *stored)


_read: Memo[Mapping[str, ScenarioGroup]] = Memo(most=1024)


def _read_all(group: ScenarioGroup, stored: Iterable[Object]) -> Mapping[str, ScenarioGroup]:
    found: dict[str, ScenarioGroup] = {}
    for obj in stored:
        try:
            spec = _former(group.spec, obj.get("data") or {})
        except (InvalidObjectError, AttributeError, TypeError, ValueError) as error:
            log.warning("Stored revision %s: %s", obj["metadata"]["name"], error)
            continue
        if names.revision_name(group.metadata.name, revision_of(spec)) == obj["metadata"]["name"]:
            found[revision_of(spec)] = group.model_copy(update={"spec": spec})
    return found


def revision_object(group: ScenarioGroup, owner: JsonMap) -> Object:
    """The ControllerRevision of the ScenarioGroup's present spec."""
    spec = group.spec.to_dict()
    kept = {part: spec[part] for part in _PARTS}
    for role in ("prefill", "decode"):
        kept[role] = {k: v for k, v in spec[role].items() if k not in _NOT_OF_THE_POD}
    kept["fabric"] = {"domainRef": spec["fabric"]["domainRef"]}
    revision = revision_of(group.spec)
    meta = owned_metadata(
        names.revision_name(group.metadata.name, revision),
        group.metadata.namespace, group.spec.service, owner, COMPONENT,
    )  # fmt: skip
    meta["labels"] |= {names.LABEL_SCENARIO: group.spec.scenario, names.LABEL_REVISION: revision}
    return {
        "apiVersion": CONTROLLER_REVISIONS.api_version,
        "kind": CONTROLLER_REVISIONS.kind,
        "metadata": meta,
        "data": kept,
        "revision": group.metadata.generation,
    }


async def keep_revisions(
    client: KubeClient, caches: Caches, obj: Object, group: ScenarioGroup, used: Collection[str]
) -> None:
    """Store the present revision, and delete those that neither `used` nor the history names.

    The history is the newest `HISTORY` of the others. A revision that is wanted again becomes the
    newest: it is stored anew, under the present generation.

    Raises:
        NotOursError: a foreign object has the name; nothing else was left out.
        KubeError: the API server refused.
    """
    present = revision_of(group.spec)
    stored = sorted(owned_by(caches.revisions, group.metadata), key=_number, reverse=True)
    spare = [o for o in stored if _revision_label(o) not in {present, *used}]
    for known in spare[HISTORY:]:
        await delete_owned(client, caches.revisions, known)
    name = names.revision_name(group.metadata.name, present)
    for again in stored[1:]:
        if again["metadata"]["name"] == name and _number(again)[0] < group.metadata.generation:
            await delete_owned(client, caches.revisions, again)
    held = caches.revisions.get(name, group.metadata.namespace)
    if held is not None:
        if not is_controlled_by(held, group.metadata.uid):
            raise NotOursError(CONTROLLER_REVISIONS, held, group.metadata.uid)
        return
    wanted = revision_object(group, owner_reference(obj))
    try:
        live = await client.create(CONTROLLER_REVISIONS, wanted, field_manager=names.FIELD_MANAGER)
    except KubeError as error:
        # The watch will show whose it is.
        if not error.is_already_exists:
            raise
        log.info("ControllerRevision %s exists already", wanted["metadata"]["name"])
        return
    caches.revisions.observe(live)


def _revision_label(stored: Object) -> str:
    return str((stored["metadata"].get("labels") or {}).get(names.LABEL_REVISION) or "")


def _number(stored: Object) -> tuple[int, str]:
    """Order of the history: the generation that it was last wanted from, then the name."""
    number = stored.get("revision")
    return (number if isinstance(number, int) else 0, stored["metadata"]["name"])


_known: Memo[ScenarioGroupSpec] = Memo()


def _former(now: ScenarioGroupSpec, data: JsonMap) -> ScenarioGroupSpec:
    return _known.of(lambda: _former_spec(now, data), now, data)


def _former_spec(now: ScenarioGroupSpec, data: JsonMap) -> ScenarioGroupSpec:
    fabric = {**now.fabric.to_dict(), "domainRef": data["fabric"]["domainRef"]}
    kept = {"recovery": now.recovery.to_dict(), "rollout": now.rollout.to_dict()}
    then = ScenarioGroupSpec.parse({**data, "fabric": fabric, **kept})
    return then.model_copy(
        update={
            "prefill": _patient_as(then.prefill, now.prefill),
            "decode": _patient_as(then.decode, now.decode),
        }
    )


def _patient_as(role: GroupRole, now: GroupRole) -> GroupRole:
    return role.model_copy(update={"startup_deadline_seconds": now.startup_deadline_seconds})
