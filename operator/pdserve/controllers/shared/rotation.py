"""Rotates one PDService's credentials: observes how far each process is, and goes one step on.

Annotation `pdserve.io/rotate` asks for it. `credentials.advance` decides; this module observes and
carries out. Called with every reconcile of the PDService; all state is in the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pdserve.api import PDService
from pdserve.controllers.shared.caches import BY_SERVICE, Caches, controlled_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.triggers import group_key
from pdserve.desired.service_credentials import (
    Seen,
    ServiceCredentials,
    advance,
    control_digests,
    told,
)
from pdserve.groups.types import ConditionState
from pdserve.kube.resource import PODS, Object, ObjectKey
from pdserve.terms.json import JsonMap
from pdserve.topology import PodView
from pdserve.wire import names
from pdserve.wire.credentials import fingerprint
from pdserve.wire.links import LinkReport

_CONTROL_PATH: Final = "/metadata/annotations/" + names.ANNOTATION_CONTROL.replace("/", "~1")


def asked_rotation(obj: Object) -> str:
    """Fingerprint of the wanted rotation of a PDService; empty where none was asked for."""
    value = (obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_ROTATE, "")
    return fingerprint(str(value)) if value else ""


def gateways_identify(caches: Caches, namespace: str, service: str) -> bool:
    """Whether every gateway pod of a service sends a request credential."""
    pods = caches.pods.by_index(BY_SERVICE, (namespace, service))
    return all(pod.annotations.get(names.ANNOTATION_CREDENTIALS) for pod in pods)


async def rotate(
    context: OperatorContext, obj: Object, service: PDService, owner: JsonMap
) -> ConditionState | None:
    """Go on with a rotation; the condition that reports it, None where none was asked for.

    Raises:
        KubeError: to be retried.
        BadSecret: the stored credentials cannot be used.
    """
    meta = service.metadata
    asked = asked_rotation(obj)
    held = await context.tokens.get(f"{meta.namespace}/{meta.name}")
    await _annotate(context, service, held)
    seen = _look(context, service, held)
    new = advance(held, asked, seen, context.tokens.random_bytes)
    if new is not None:
        await context.tokens.change(meta.namespace, meta.name, owner, new)
        await _annotate(context, service, new)
        for key, _ in _groups(context, service):
            context.queue.add(group_key(key))
        held, seen = new, _look(context, service, new)
    return told(held, asked, seen)


def _groups(context: OperatorContext, service: PDService) -> Iterator[tuple[ObjectKey, Object]]:
    key = (service.metadata.namespace, service.metadata.name)
    for group in context.caches.groups.by_index(BY_SERVICE, key):
        yield ObjectKey(key[0], group["metadata"]["name"]), group


def _instances(
    context: OperatorContext, service: PDService
) -> Iterator[tuple[PodView, LinkReport | None]]:
    """Pods of the service's P/D groups, with what each last reported, or else its leader."""
    namespace = service.metadata.namespace
    for key, group in _groups(context, service):
        reports = context.linker.links(key)
        for pod in controlled_by(context.caches.pods, namespace, group["metadata"]["uid"]):
            yield pod, reports.get(pod.name, reports.get(names.instance_name(pod.name)))


def _look(context: OperatorContext, service: PDService, held: ServiceCredentials) -> Seen:
    engines, legacy = [], []
    for pod, report in _instances(context, service):
        if report is None or not report.credentials:
            legacy.append(pod.name)
        behind = report is None or (report.credentials > 0 and report.grant != held.revision)
        if pod.linked.true and behind:
            engines.append(pod.name)
    gateways = []
    key = (service.metadata.namespace, service.metadata.name)
    for pod in context.caches.pods.by_index(BY_SERVICE, key):
        sends = pod.annotations.get(names.ANNOTATION_CREDENTIALS, "")
        if sends != held.gateway_fingerprint:
            gateways.append(pod.name)
        if not sends:
            legacy.append(pod.name)
    return Seen(tuple(sorted(engines)), tuple(sorted(gateways)), tuple(sorted(legacy)))


async def _annotate(context: OperatorContext, service: PDService, held: ServiceCredentials) -> None:
    """A container that starts anew reads from its pod whom to take for its operator."""
    namespace = service.metadata.namespace
    for pod, _ in list(_instances(context, service)):
        wanted = control_annotation(held, namespace, pod.name)
        present = pod.annotations.get(names.ANNOTATION_CONTROL)
        if not present or present == wanted or pod.deleting:
            continue
        live = await context.client.patch_json(
            PODS, pod.name, [{"op": "replace", "path": _CONTROL_PATH, "value": wanted}],
            namespace=namespace, uid=pod.uid, field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
        context.caches.pods.observe(live)


def control_annotation(held: ServiceCredentials, namespace: str, pod: str) -> str:
    """Annotation `pdserve.io/control` of an instance: digests, one a line."""
    return "\n".join(control_digests(held, namespace, pod))
