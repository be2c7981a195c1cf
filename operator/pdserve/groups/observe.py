"""Raw pod and node dicts -> `InstanceObs`. The only place in `groups` that knows their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from pdserve.groups.health import (
    HealthLimits,
    Since,
    clamped,
    classify,
    condition,
    created,
    device_ids,
    engine_status,
    is_silent,
    linked_since,
    ready_since,
    unready_since,
    unscheduled,
    up_since,
)
from pdserve.groups.types import InstanceObs
from pdserve.terms import ROLES, Device
from pdserve.terms.times import timestamp
from pdserve.topology.nodes import node_view
from pdserve.topology.requests import pod_devices, pod_requests, requested, requested_devices
from pdserve.wire import names
from pdserve.wire.pin import pinned_node


class NotOurs(ValueError):  # noqa: N818 - a fact about the pod, not a failure of this program
    """The pod lacks a label that every instance carries; the message names it."""


def instance_obs(
    pod: Mapping[str, Any],
    node: Mapping[str, Any] | None,
    now: float,
    limits: HealthLimits | None = None,
    since: Since | None = None,
    silent: float | None = None,
) -> InstanceObs:
    """Read one instance.

    Args:
        pod: the raw Pod of an instance.
        node: the raw Node it is bound or pinned to; None when no such Node exists.
        now: seconds since the epoch.
        limits: thresholds of `health` (defaults when None).
        since: translates stamps to the clock of `now` (default `health.clamped`).
        silent: see `health.classify`.

    Raises:
        NotOurs: a label is missing or malformed.
    """
    meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    labels = meta.get("labels") or {}
    annotations = meta.get("annotations") or {}
    role = labels.get(names.LABEL_ROLE)
    if role not in ROLES:
        raise NotOurs(f"pod {meta['name']}: label {names.LABEL_ROLE} is {role!r}, want {ROLES}")
    index = labels.get(names.LABEL_GROUP_INDEX)
    if not is_group_index(index):
        raise NotOurs(
            f"pod {meta['name']}: label {names.LABEL_GROUP_INDEX} is {index!r}, want a number"
        )
    engine = engine_status(pod)
    linked = condition(pod, names.CONDITION_LINKED)
    since = clamped(now) if since is None else since
    limits = limits or HealthLimits()
    verdict = classify(pod, node, now, limits, since, silent)
    drain = timestamp(annotations.get(names.ANNOTATION_DRAIN))
    bound = spec.get("nodeName")
    return InstanceObs(
        name=meta["name"],
        uid=str(meta.get("uid", "")),
        slot=str(meta["name"]).rpartition("-")[0],
        role=role,
        group_index=int(index),
        revision=str(labels.get(names.LABEL_REVISION, "")),
        node=str(bound or pinned_node(pod) or ""),
        created=since("created", created(pod)),
        domains={
            key.removeprefix(names.TOPOLOGY_PREFIX): value
            for key, value in sorted(labels.items())
            if key.startswith(names.TOPOLOGY_PREFIX)
        },
        devices=_devices(pod, node),
        pod_ip=status.get("podIP") or None,
        bound=bool(bound),
        running=engine.get("state", {}).get("running") is not None,
        container_id=engine.get("containerID") or None,
        restarts=int(engine.get("restartCount") or 0),
        ready=condition(pod, "Ready").get("status") == "True",
        linked_container=(linked.get("message") or None)
        if linked.get("status") == "True"
        else None,
        ever_linked=bool(linked),
        terminating=bool(meta.get("deletionTimestamp")),
        drain_started=None if drain is None else since("drain", drain),
        replaces=annotations.get(names.ANNOTATION_REPLACES) or None,
        fault=verdict.fault,
        fault_message=verdict.message,
        unscheduled=unscheduled(pod) or "",
        holds=pod_requests(pod),
        claimed=tuple(requested(pod).items()) if requested_devices(pod) else (),
        scale_unit=names.LABEL_SCALE_UNIT in labels,
        recheck_after=verdict.recheck_after,
        silent=is_silent(node),
        up_since=None if is_silent(node) else up_since(pod, since),
        ready_since=ready_since(pod, since),
        unready_since=unready_since(pod, since),
        linked_since=linked_since(pod, since),
        startup_deadline=limits.startup_deadline,
    )


def is_group_index(label: Any) -> TypeGuard[str]:
    """Whether a label's value is the index of a P/D group, as the operator writes it."""
    return isinstance(label, str) and re.fullmatch(r"0|[1-9][0-9]{0,5}", label) is not None


def _devices(pod: Mapping[str, Any], node: Mapping[str, Any] | None) -> tuple[Device, ...]:
    """The node's devices that this pod holds: those told, or all if it holds all, else unknown."""
    if node is None:
        return ()
    view = node_view(node)
    ids = device_ids(pod)
    if ids is not None:
        known = {d.id: d for d in view.devices}
        return tuple(known.get(i, Device(i)) for i in sorted(ids))
    held = pod_devices(pod)
    whole = any(count >= view.capacity.get(r, 1 << 30) for r, count in held.items())
    return view.devices if whole else ()
