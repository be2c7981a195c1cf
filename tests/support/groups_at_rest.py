"""What holds of the pods of a ScenarioGroup in a cluster when nothing goes on."""

from __future__ import annotations

from tests.support.scenarios import (
    API,
    READY_SECONDS,
    Cluster,
    Json,
    condition,
    counts,
    group,
    is_ready,
    leaving,
    name_of,
    pods,
    pods_by_labels,
    until,
)

from pdserve.wire import names


def check_groups(cluster: Cluster, namespace: str, group_name: str) -> list[Json]:
    """The standing order of a ScenarioGroup at rest; returns its pods.

    Every pod runs where its plan pinned it, is linked for the container that runs, carries the
    labels others rely on, and `/scale` counts exactly one pod per P/D group.
    """
    obj = group(cluster, namespace, group_name)
    assert obj is not None
    wanted_groups, prefill, decode = counts(cluster, namespace, group_name)
    spec, found = obj["spec"], []
    for pod in pods(cluster, namespace, scenario=spec["scenario"], service=spec["service"]):
        if not leaving(pod):
            found.append(pod)
            check_pod(pod, obj)
    by_group: dict[str, list[Json]] = {}
    for pod in found:
        by_group.setdefault(pod["metadata"]["labels"][names.LABEL_GROUP_INDEX], []).append(pod)
    assert len(by_group) == wanted_groups, sorted(by_group)
    for members in by_group.values():
        roles = [pod["metadata"]["labels"][names.LABEL_ROLE] for pod in members]
        assert (roles.count("prefill"), roles.count("decode")) == (prefill, decode)
        units = [p for p in members if names.LABEL_SCALE_UNIT in p["metadata"]["labels"]]
        assert len(units) == 1, [name_of(p) for p in units]
    scale = cluster.get(f"{API}/namespaces/{namespace}/scenariogroups/{group_name}/scale")
    assert scale is not None
    matched = pods_by_labels(cluster, namespace, scale["status"]["selector"])
    indexes = [pod["metadata"]["labels"][names.LABEL_GROUP_INDEX] for pod in matched]
    assert sorted(indexes) == sorted(by_group), "the selector of /scale: one pod per P/D group"
    assert scale["status"]["replicas"] == wanted_groups
    return found


def wait_groups(
    cluster: Cluster, namespace: str, group_name: str, seconds: float = READY_SECONDS
) -> list[Json]:
    """`check_groups`, once it holds.

    After a restart in place a real kubelet may say Ready by the gate of the container that died,
    then not Ready, then Ready again.
    """
    failed: AssertionError | None = None

    def hold() -> list[Json] | None:
        nonlocal failed
        try:
            return check_groups(cluster, namespace, group_name)
        except AssertionError as error:
            failed = error
            return None

    what = f"{namespace}/{group_name} is in order"
    return list(until(what, hold, seconds, instead=lambda: failed))


def check_pod(pod: Json, owner: Json) -> None:
    """One instance at rest."""
    name, labels, spec = name_of(pod), pod["metadata"]["labels"], pod["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    (field,) = term["matchFields"]
    assert field == {"key": "metadata.name", "operator": "In", "values": [spec["nodeName"]]}, name
    assert labels[names.LABEL_INSTANCE] == name
    assert labels[names.LABEL_SERVICE] == owner["spec"]["service"]
    assert labels[names.LABEL_SCENARIO] == owner["spec"]["scenario"]
    assert labels[names.LABEL_MANAGED_BY] == names.FIELD_MANAGER
    (reference,) = pod["metadata"]["ownerReferences"]
    assert (reference["uid"], reference["controller"]) == (owner["metadata"]["uid"], True)
    linked = condition(pod, names.CONDITION_LINKED)
    (container,) = pod["status"]["containerStatuses"]
    assert (linked["status"], linked["message"]) == ("True", container["containerID"]), name
    assert is_ready(pod), name
