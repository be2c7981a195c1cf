"""Carries out a group plan, action by action, in order. No decisions here.

Every action is guarded: a POST answers 409 for a pod that exists, patches and deletes test the
uid. So a crash between any two leaves a state that the next observation explains, and a plan made
from an old view does no harm. Answers enter the cache at once: the next plan reads them.
"""

from __future__ import annotations

import dataclasses
import logging

from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.owned import delete_owned, ensure
from pdserve.controllers.shared.rotation import control_annotation
from pdserve.desired.group_wanted import ScenarioGroupView, peer_table
from pdserve.desired.objects import owned_metadata
from pdserve.desired.service_credentials import BadSecret
from pdserve.engines.pods import render_pod
from pdserve.engines.template_errors import TemplateError
from pdserve.groups import types as t
from pdserve.groups.flip_types import FlipRole
from pdserve.kube.errors import KubeError
from pdserve.kube.events import Level
from pdserve.kube.lines import say
from pdserve.kube.ownership import NotOursError, is_controlled_by, owner_reference
from pdserve.kube.resource import PODS, Object, ObjectKey
from pdserve.terms import Role
from pdserve.terms.json import JsonMap
from pdserve.terms.times import rfc3339
from pdserve.wire import names
from pdserve.wire.bounds import MAX_PASSED_VERSION, WireError
from pdserve.wire.peers import PeerTable

log = logging.getLogger(__name__)

_ROLE_PATH = "/metadata/labels/" + names.LABEL_ROLE.replace("/", "~1")
_FLIP_PATH = "/metadata/annotations/" + names.ANNOTATION_FLIP_TO.replace("/", "~1")
_DRAIN_PATH = "/metadata/annotations/" + names.ANNOTATION_DRAIN.replace("/", "~1")
_LEADER_PATH = "/metadata/annotations/" + names.ANNOTATION_LEADER_ADDRESS.replace("/", "~1")
_SCALE_PATH = "/metadata/labels/" + names.LABEL_SCALE_UNIT.replace("/", "~1")


class CreateRefused(Exception):  # noqa: N818 - the cluster's answer, not a defect
    """The API server will not have these pods (quota, admission, a bad template)."""


class GroupExecutor:
    """Executes the plan of one ScenarioGroup."""

    def __init__(self, context: OperatorContext, obj: Object, view: ScenarioGroupView) -> None:
        """`obj` is the live ScenarioGroup, `view` what the plan was made from."""
        self._context = context
        self._obj = obj
        self._view = view
        self._owner = owner_reference(obj)

    async def execute(self, actions: tuple[t.Action, ...]) -> None:
        """Do all of `actions` in order; stops at the first that fails.

        Raises:
            CreateRefused: pods were refused; what this action had made is deleted again.
            NotOursError: a foreign object has a name that is needed.
            KubeError: anything else; conflicts mean that the view was old.
        """
        for action in actions:
            self._context.metrics.actions.labels(type(action).__name__).inc()
            await self._run(action)

    async def _run(self, action: t.Action) -> None:
        match action:
            case t.CreateGroup():
                await self._create_group(action)
            case t.CreateInstance():
                await self._create_instance(action)
            case t.PublishTable():
                await self._publish(action)
            case t.DeleteTable():
                await self._delete_table(action)
            case t.MarkLinked():
                message = action.container_id
                await self._mark(action.name, action.uid, "True", "LinksVerified", message)
            case t.MarkUnlinked():
                await self._mark(action.name, action.uid, "False", "LinksLost", action.reason)
            case t.TellLeader():
                operation = {"op": "add", "path": _LEADER_PATH, "value": action.address}
                await self._patch(action.name, action.uid, operation)
            case t.BeginDrain():
                await self._begin_drain(action)
            case FlipRole():
                await self._flip_role(action)
            case t.DeletePod():
                await self._delete_pod(action)
            case t.MoveScaleUnit():
                await self._move_scale_unit(action)

    # --- creating --------------------------------------------------------------------------

    async def _create_group(self, action: t.CreateGroup) -> None:
        made = await self._post_all(action.pods, "P/D group")
        if made:
            roles = [p.role for p in action.pods if p.member == 0]
            self._event(
                "Normal",
                reasons.CREATED,
                f"P/D group {action.group_index}: {roles.count('prefill')} prefill and "
                f"{roles.count('decode')} decode instances placed",
                index=action.group_index,
                nodes=", ".join(sorted({p.node for p in action.pods})),
            )

    async def _create_instance(self, action: t.CreateInstance) -> None:
        new = action.pod
        if not await self._post_all(action.pods, "instance"):
            return
        lost = new.replaces is not None and not action.stands_in
        if lost:
            spec = self._view.group.spec
            self._context.metrics.faults.labels(spec.service, spec.scenario).inc()
        level: Level = "Warning" if lost else "Normal"
        reason = reasons.SUBSTITUTED if lost else reasons.GROWN
        nodes = ", ".join(dict.fromkeys(p.node for p in action.pods))
        note = f"{new.name} on node {nodes}: {action.reason}"
        about: dict[str, str | int] = {"index": new.group_index, "node": new.node}
        self._event(level, reason, note, instance=new.name, **about)

    async def _post_all(self, pods: tuple[t.NewPod, ...], whole: str) -> list[Object]:
        """POST pods that only serve together; returns those that this call made.

        All or nothing: what stands alone would hold devices and serve no request.
        """
        made: list[Object] = []
        leaders: dict[str, str] = {}
        try:
            for new in pods:
                leader = leaders.get(new.instance, "")
                pod, is_new = await self._post(dataclasses.replace(new, leader_uid=leader))
                leaders.setdefault(new.instance, pod["metadata"]["uid"])
                if is_new:
                    made.append(pod)
        except (CreateRefused, NotOursError):
            for pod in made:
                meta = pod["metadata"]
                await self._mark_drain(meta["name"], meta["uid"])
                await self._remove(meta["name"], meta["uid"])
                say(
                    log, f"Deleted {meta['name']}: the rest of its {whole} was refused",
                    reason=reasons.DELETED, namespace=self._namespace,
                    name=self._view.group.metadata.name, instance=meta["name"],
                    index=pods[0].group_index,
                )  # fmt: skip
            raise
        return made

    async def _post(self, new: t.NewPod) -> tuple[Object, bool]:
        """The pod, and whether this call made it."""
        namespace, service = self._namespace, self._view.group.spec.service
        try:
            held = await self._context.tokens.get(f"{namespace}/{service}")
        except BadSecret as error:
            raise CreateRefused(f"pod {new.name}: {error}") from error
        control = control_annotation(held, namespace, new.name)
        try:
            group = self._view.at(new.revision)
            pod = render_pod(
                group, new, self._owner, self._context.rights, control,
                self._context.pod_settings,
            )  # fmt: skip
        except TemplateError as error:
            raise CreateRefused(f"pod {new.name}: {error}") from error
        client, cache = self._context.client, self._context.caches.pods
        try:
            live = await client.create(PODS, pod, field_manager=names.FIELD_MANAGER)
        except KubeError as error:
            if error.is_already_exists:
                live = await client.get(PODS, new.name, pod["metadata"]["namespace"])
                if not is_controlled_by(live, self._owner["uid"]):
                    raise NotOursError(PODS, live, self._owner["uid"]) from error
                live = await self._relabelled(live, pod)
                cache.observe(live)
                return live, False
            if error.is_forbidden or error.is_invalid:
                raise CreateRefused(f"pod {new.name}: {error.message}") from error
            raise
        cache.observe(live)
        say(
            log, f"Created instance {new.name} on node {new.node}",
            reason="InstanceCreated", namespace=namespace, name=group.metadata.name,
            service=service, index=new.group_index, instance=new.name, node=new.node,
            role=new.role, replaces=new.replaces,
        )  # fmt: skip
        return live, True

    async def _relabelled(self, live: Object, wanted: Object) -> Object:
        """A pod of ours, with the labels put back that say what it is, if it has lost them.

        The plan does not see such a pod: it asks for one of the same name, which means for the same
        slot and revision. What depends on its node is left as it is.
        """
        meta = live["metadata"]
        labels = meta.get("labels") or {}
        lost = {
            key: value
            for key, value in wanted["metadata"]["labels"].items()
            if key not in labels
            and key != names.LABEL_SCALE_UNIT
            and not key.startswith(names.TOPOLOGY_PREFIX)
        }
        if names.LABEL_ROLE not in lost and names.LABEL_GROUP_INDEX not in lost:
            return live
        operation = {"op": "add", "path": "/metadata/labels", "value": {**labels, **lost}}
        log.warning("Pod %s/%s lost its labels; put back", self._namespace, meta["name"])
        return await self._context.client.patch_json(
            PODS, meta["name"], [operation],
            namespace=self._namespace, uid=meta["uid"], field_manager=names.FIELD_MANAGER,
        )  # fmt: skip

    # --- tables ----------------------------------------------------------------------------

    async def _publish(self, action: t.PublishTable) -> None:
        group = self._view.group
        name = names.peers_configmap_name(group.metadata.name, action.group_index)
        meta = owned_metadata(
            name, group.metadata.namespace, group.spec.service, self._owner, "peer-table"
        )
        meta["labels"][names.LABEL_SCENARIO] = group.spec.scenario
        meta["labels"][names.LABEL_GROUP_INDEX] = str(action.group_index)
        table = self._newer(action.table).fitted()

        def holding(table: PeerTable) -> Object:
            data = {names.KEY_PEERS: table.encoded()}
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}

        # One version never has two contents: an instance that took the first keeps it.
        await ensure(
            self._context.client, self._context.caches.config_maps, holding(table),
            rebase=lambda live: holding(_above(table, live)),
        )  # fmt: skip

    def _newer(self, table: PeerTable) -> PeerTable:
        """Instances keep a table of a higher version: after ours was lost (a user deleted the
        ConfigMap), the next one must pass what they hold.
        """
        key = ObjectKey(self._namespace, self._view.group.metadata.name)
        reports = self._context.linker.links(key)
        said = (r.version for p in table.instances if (r := reports.get(p.id)))
        held = max((v for v in said if v <= MAX_PASSED_VERSION), default=0)
        return table if held < table.version else dataclasses.replace(table, version=held + 1)

    async def _delete_table(self, action: t.DeleteTable) -> None:
        obj = self._view.table_objects.get(action.group_index)
        if obj is None:
            return
        await delete_owned(self._context.client, self._context.caches.config_maps, obj)

    # --- running pods ----------------------------------------------------------------------

    async def _mark(self, name: str, uid: str, status: str, reason: str, message: str) -> None:
        condition = {
            "type": names.CONDITION_LINKED,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(self._context.now()),
        }
        # A strategic merge sets this one condition; the kubelet writes the others meanwhile.
        live = await self._context.client.patch_status(
            PODS, name, {"conditions": [condition]},
            namespace=self._namespace, uid=uid, strategic=True, field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
        self._context.caches.pods.observe(live)

    async def _begin_drain(self, action: t.BeginDrain) -> None:
        await self._mark_drain(action.name, action.uid, action.flip_to)
        note = f"{action.name}: {action.reason}"
        self._event("Normal", reasons.DRAINING, note, **self._instance(action.name))

    async def _flip_role(self, action: FlipRole) -> None:
        """One write: a reader of the pod sees the one role or the other."""
        await self._patch(
            action.name, action.uid,
            {"op": "replace", "path": _ROLE_PATH, "value": action.role},
            {"op": "remove", "path": _DRAIN_PATH},
            {"op": "remove", "path": _FLIP_PATH},
        )  # fmt: skip
        note = f"{action.name} is a {action.role} from now on"
        self._event("Normal", reasons.FLIPPED, note, **self._instance(action.name))

    async def _mark_drain(self, name: str, uid: str, flip_to: Role | None = None) -> None:
        """Mark its end as planned, so that it is not counted as a loss."""
        stamp = rfc3339(self._context.now())
        # Every instance has annotations (metrics), so the parent of the path exists.
        operation = {"op": "add", "path": _DRAIN_PATH, "value": stamp}
        flip: list[JsonMap] = []
        if flip_to is not None:
            flip = [{"op": "add", "path": _FLIP_PATH, "value": flip_to}]
        await self._patch(name, uid, operation, *flip)

    async def _move_scale_unit(self, action: t.MoveScaleUnit) -> None:
        operation: JsonMap = {"op": "remove", "path": _SCALE_PATH}
        if action.present:
            operation = {"op": "add", "path": _SCALE_PATH, "value": "true"}
        await self._patch(action.name, action.uid, operation)

    async def _patch(self, name: str, uid: str, *operations: JsonMap) -> None:
        live = await self._context.client.patch_json(
            PODS, name, operations,
            namespace=self._namespace, uid=uid, field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
        self._context.caches.pods.observe(live)

    async def _delete_pod(self, action: t.DeletePod) -> None:
        instance = self._instance(action.name)
        await self._remove(action.name, action.uid, force=action.force)
        self._event("Normal", reasons.DELETED, f"{action.name}: {action.reason}", **instance)

    async def _remove(self, name: str, uid: str, *, force: bool = False) -> None:
        meta = {"name": name, "namespace": self._namespace, "uid": uid}
        grace = 0 if force else None
        context = self._context
        await delete_owned(context.client, context.caches.pods, {"metadata": meta}, grace)

    @property
    def _namespace(self) -> str:
        return self._view.group.metadata.namespace

    def _instance(self, name: str) -> dict[str, str | int]:
        """Fields of a log line about a pod of an instance that there is."""
        of_pod = {m.pod: (i, m) for i in self._view.instances for m in i.members}
        where: dict[str, str | int] = {}
        if name in of_pod:
            found, member = of_pod[name]
            where = {"index": found.group_index, "node": member.node}
        return {"instance": names.instance_name(name), **where}

    def _event(self, level: Level, reason: str, note: str, **about: str | int) -> None:
        self._context.events.event(self._obj, level, reason, note, about=about)


def _above(table: PeerTable, live: Object) -> PeerTable:
    """`table` at a version that passes the one in the ConfigMap, unless they are alike."""
    try:
        there = peer_table(live)
    except WireError:
        return table
    same = dataclasses.replace(table, version=there.version)
    if same == there:
        return there
    return (
        table
        if there.version < table.version
        else dataclasses.replace(table, version=there.version + 1)
    )
