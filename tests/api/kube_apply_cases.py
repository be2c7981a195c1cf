"""What an API server must answer to server-side apply, dry runs and lists (`kube_steps`)."""

from __future__ import annotations

from tests.api.kube_steps import (
    ABSENT,
    GATE,
    NO_UID,
    PRESENT,
    READY,
    SAME,
    WIDGETS,
    Step,
    apply,
    delete,
    ensure,
    get,
    listed,
    op,
    owned,
    pod,
    post,
)

from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    CONFIGMAPS,
    NODES,
    PODS,
)  # fmt: skip

APPLY_CASES: dict[str, list[Step]] = {
    "apply creates, owns and drops": [
        Step(apply(WIDGETS, "a", spec={"size": 1, "color": "red"}), see={"metadata.generation": 1}),
        Step(
            apply(WIDGETS, "a", spec={"size": 1, "color": "red"}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(
            apply(WIDGETS, "a", spec={"size": 2}),
            see={"spec": {"size": 2}, "metadata.generation": 2},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", force=False, spec={"size": 3}),
            "409 Conflict",
        ),
        Step(
            apply(WIDGETS, "a", manager="two", force=False, spec={"size": 2, "color": "blue"}),
            see={"spec": {"size": 2, "color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", spec={}),
            see={"spec": {"size": 2, "color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={"color": "blue"}),
            see={"spec": {"color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="three", spec={"color": "green"}),
            see={"spec": {"color": "green"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={"size": 5}),
            see={"spec": {"color": "green", "size": 5}},
        ),
    ],
    "apply with a uid guard": [
        Step(apply(CONFIGMAPS, "a", uid=NO_UID, data={"x": "1"}), "409 Conflict"),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
        Step(post(CONFIGMAPS, "a", data={"x": "1"})),
        Step(apply(CONFIGMAPS, "a", uid=NO_UID, data={"x": "2"}), "409 Conflict"),
        Step(apply(CONFIGMAPS, "a", uid="its", data={"x": "2"}), see={"data": {"x": "2"}}),
    ],
    "apply merges into a foreign object": [
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, s.obj(CONFIGMAPS, "a", data={"theirs": "1"}), field_manager="user"
            )
        ),
        Step(
            apply(CONFIGMAPS, "a", owned("boss"), data={"ours": "2"}),
            see={
                "data": {"theirs": "1", "ours": "2"},
                "metadata.ownerReferences.*.name": ["boss"],
            },
        ),
        Step(
            apply(CONFIGMAPS, "a", data={}),
            see={"data": {"theirs": "1"}, "metadata.ownerReferences": ABSENT},
        ),
    ],
    "apply to lists: keyed ones by item, others whole": [
        Step(
            apply(
                WIDGETS,
                "a",
                spec={"tags": ["x", "y"], "parts": [{"name": "p", "count": 1}, {"name": "q"}]},
            )
        ),
        Step(
            apply(
                WIDGETS,
                "a",
                manager="two",
                spec={"parts": [{"name": "r", "count": 3}, {"name": "q", "count": 2}]},
            ),
            see={
                "spec.parts.*.name": ["p", "q", "r"],
                "spec.parts.*.count": [1, 2, 3],
                "spec.tags": ["x", "y"],
            },
        ),
        Step(
            apply(WIDGETS, "a", spec={"tags": ["z"], "parts": [{"name": "q"}]}),
            see={"spec.parts.*.name": ["q", "r"], "spec.tags": ["z"]},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={}),
            see={"spec.parts": [{"name": "q"}], "spec.tags": ["z"]},
        ),
        Step(apply(WIDGETS, "a", spec={"size": 1}), see={"spec": {"size": 1}}),
    ],
    "apply to the status subresource": [
        Step(post(WIDGETS, "a", spec={"size": 1})),
        Step(
            apply(
                WIDGETS,
                "a",
                sub="status",
                uid="its",
                spec={"size": 9},
                status={"ready": 1, "conditions": GATE},
            ),
            see={"status.ready": 1, "spec.size": 1, "metadata.generation": 1},
        ),
        Step(
            apply(WIDGETS, "a", sub="status", manager="two", status={"conditions": READY}),
            see={"status.conditions.*.type": ["Ready", "conformance.test/Linked"]},
        ),
        Step(
            apply(WIDGETS, "a", sub="status", status={"conditions": GATE}),
            see={
                "status.ready": ABSENT,
                "status.conditions.*.type": ["Ready", "conformance.test/Linked"],
            },
        ),
        Step(
            apply(WIDGETS, "a", sub="status", status={"conditions": GATE}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(
            apply(WIDGETS, "a", spec={"size": 2}, status={"ready": 7}),
            see={"spec.size": 2, "status.ready": ABSENT},
        ),
        Step(apply(WIDGETS, "b", sub="status", status={"ready": 1}), "404 NotFound"),
    ],
    "a POST's fields stay unless they are handed over": [
        Step(post(CONFIGMAPS, "a", owned("boss"), data={"x": "1", "y": "2"})),
        Step(
            apply(CONFIGMAPS, "a", owned("boss"), uid="its", data={"x": "1"}),
            see={"data": {"x": "1", "y": "2"}},
        ),
        Step(ensure("a", True, {"x": "1"}), see={"data": {"x": "1"}}),
        Step(ensure("a", True, {"x": "1"}), see={"metadata.resourceVersion": SAME}),
        Step(ensure("a", False, {"x": "3"}), see={"data": {"x": "3"}}),
        Step(ensure("b", False, {"x": "1"}), see={"metadata.uid": PRESENT}),
        Step(ensure("b", True, {"z": "1"}), see={"data": {"z": "1"}}),
    ],
    "a PUT takes fields from an applier": [
        Step(apply(CONFIGMAPS, "a", data={"x": "1", "y": "1"})),
        Step(
            lambda s: s.client.patch_json(
                CONFIGMAPS,
                "a",
                [op("replace", "/data/x", "2")],
                namespace=s.namespace,
                field_manager="user",
            ),
            see={"data": {"x": "2", "y": "1"}},
        ),
        Step(apply(CONFIGMAPS, "a", force=False, data={"x": "1", "y": "1"}), "409 Conflict"),
        Step(apply(CONFIGMAPS, "a", data={"y": "1"}), see={"data": {"x": "2", "y": "1"}}),
    ],
    "apply onto a terminating pod": [
        Step(pod("a", "node-x")),
        Step(delete(PODS, "a")),
        Step(
            apply(PODS, "a", {"labels": {"x": "1"}}),
            see={"metadata.labels": {"x": "1"}, "metadata.deletionTimestamp": PRESENT},
        ),
        Step(delete(PODS, "a", grace=0)),
    ],
    "dry run writes nothing": [
        Step(
            lambda s: s.client.create(CONFIGMAPS, s.obj(CONFIGMAPS, "a"), dry_run=True),
            see={"metadata.uid": PRESENT},
        ),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
    ],
    "lists: pages, selectors, order": [
        Step(post(CONFIGMAPS, "c", {"labels": {"k": "1"}})),
        Step(post(CONFIGMAPS, "a", {"labels": {"k": "1", "l": "2"}})),
        Step(post(CONFIGMAPS, "b")),
        Step(listed(CONFIGMAPS), see={"names": ["a", "b", "c"]}),
        Step(listed(CONFIGMAPS, page_size=1), see={"names": ["a", "b", "c"]}),
        Step(listed(CONFIGMAPS, label_selector="k=1"), see={"names": ["a", "c"]}),
        Step(listed(CONFIGMAPS, label_selector="k=1,l!=2"), see={"names": ["c"]}),
        Step(listed(CONFIGMAPS, label_selector="!k"), see={"names": ["b"]}),
        Step(listed(CONFIGMAPS, label_selector="l"), see={"names": ["a"]}),
        Step(listed(CONFIGMAPS, field_selector="metadata.name=b"), see={"names": ["b"]}),
        Step(
            lambda s: s.transport.send(
                KubeRequest("list", CONFIGMAPS, s.namespace, query={"limit": "1", "continue": "no"})
            ),
            "400 BadRequest",
        ),
    ],
    "nodes are cluster-scoped": [
        Step(post(NODES, "conformance-node", {"labels": {"x": "1"}})),
        Step(post(NODES, "conformance-node"), "409 AlreadyExists"),
        Step(
            lambda s: s.client.patch_status(
                NODES, "conformance-node", {"conditions": READY}, strategic=True
            ),
            see={"status.conditions.*.type": ["Ready"]},
        ),
        Step(lambda s: s.client.delete(NODES, "conformance-node"), see={"status": "Success"}),
    ],
}
