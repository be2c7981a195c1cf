"""What an API server must answer to creations, patches, deletions and PUTs (`kube_steps`)."""

from __future__ import annotations

from tests.api.kube_steps import (
    ABSENT,
    GATE,
    NEW,
    NO_KIND,
    NO_UID,
    PRESENT,
    READY,
    SAME,
    WIDGETS,
    Step,
    apply,
    delete,
    get,
    listed,
    op,
    patch,
    pod,
    post,
    status,
    update,
)

from pdserve.kube.resource import (
    CONFIGMAPS,
    LEASES,
    PODS,
)  # fmt: skip

CASES: dict[str, list[Step]] = {
    "a name is taken once": [
        Step(post(CONFIGMAPS, "a", data={"x": "1"}), see={"metadata.generation": ABSENT}),
        Step(post(CONFIGMAPS, "a", data={"x": "2"}), "409 AlreadyExists"),
        Step(get(CONFIGMAPS, "a"), see={"data": {"x": "1"}, "metadata.resourceVersion": SAME}),
        Step(get(CONFIGMAPS, "b"), "404 NotFound"),
    ],
    "a kind or namespace that is not there": [
        Step(lambda s: s.client.get(NO_KIND, "a", s.namespace), "404 NotFound"),
        Step(listed(NO_KIND), "404 NotFound"),
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, {"metadata": {"name": "a", "namespace": "conformance-nowhere"}}
            ),
            "404 NotFound",
        ),
        Step(lambda s: s.client.get(CONFIGMAPS, "a", "conformance-nowhere"), "404 NotFound"),
    ],
    "the server owns uid, version and times": [
        Step(post(CONFIGMAPS, "a", {"resourceVersion": "7"}), "500 Unknown"),
        Step(
            post(CONFIGMAPS, "a", {"deletionTimestamp": "2020-01-01T00:00:00Z"}),
            see={"metadata.deletionTimestamp": ABSENT, "metadata.uid": PRESENT},
        ),
    ],
    "generateName": [
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, {"metadata": {"generateName": "g-", "namespace": s.namespace}}
            ),
            see={"metadata.name": PRESENT, "metadata.generateName": "g-"},
        ),
    ],
    "a pod is created pending": [
        Step(pod("a"), see={"status.phase": "Pending", "metadata.generation": 1}),
        Step(pod("a"), "409 AlreadyExists"),
    ],
    "JSON patch with tests": [
        Step(pod("a")),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels", {"x": "1"}), uid=NO_UID),
            "422 TestFailed",
        ),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels", {"x": "1"}), uid="its"),
            see={"metadata.labels": {"x": "1"}, "metadata.resourceVersion": NEW},
        ),
        Step(
            patch(PODS, "a", op("test", "/metadata/labels/x", "2"), uid="its"),
            "422 TestFailed",
        ),
        Step(
            patch(PODS, "a", op("replace", "/metadata/labels/x", "1")),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(patch(PODS, "a", op("remove", "/metadata/labels/absent")), "422 Invalid"),
        Step(
            patch(PODS, "a", op("replace", "/metadata/labels/new", "1")),
            see={"metadata.labels": {"new": "1", "x": "1"}},
        ),
        Step(patch(PODS, "a", op("remove", "/metadata/labels/new"))),
        Step(patch(PODS, "b", op("add", "/metadata/labels", {})), "404 NotFound"),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels/y~1z", "2")),
            see={"metadata.labels": {"x": "1", "y/z": "2"}},
        ),
        Step(
            patch(PODS, "a", op("remove", "/metadata/labels/x"), uid="its"),
            see={"metadata.labels": {"y/z": "2"}, "metadata.generation": 1},
        ),
    ],
    "a pod's spec is fixed": [
        Step(pod("a")),
        Step(patch(PODS, "a", op("add", "/spec/nodeName", "n")), "422 Invalid"),
        Step(patch(PODS, "a", op("add", "/spec/hostNetwork", True)), "422 Invalid"),
        Step(
            patch(PODS, "a", op("replace", "/spec/containers/0/image", "two")),
            see={"metadata.generation": 2},
        ),
    ],
    "status of a pod, merged by condition type": [
        Step(pod("a")),
        Step(
            status(PODS, "a", {"conditions": GATE}, uid="its", strategic=True),
            see={"status.phase": "Pending", "metadata.generation": 1},
        ),
        Step(
            status(PODS, "a", {"conditions": READY}, strategic=True),
            see={"status.conditions.*.type": ["Ready", "conformance.test/Linked"]},
        ),
        Step(
            status(PODS, "a", {"conditions": GATE}, uid="its", strategic=True),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(status(PODS, "a", {"conditions": GATE}, uid=NO_UID, strategic=True), "409 Conflict"),
        Step(
            status(PODS, "a", {"conditions": GATE}, resource_version="1", strategic=True),
            "409 Conflict",
        ),
        Step(
            status(PODS, "a", {"conditions": READY}),
            see={"status.conditions.*.type": ["Ready"]},
        ),
        Step(
            patch(PODS, "a", op("add", "/status/phase", "Running")),
            see={"status.phase": "Pending", "metadata.resourceVersion": SAME},
        ),
    ],
    "deleting pods": [
        Step(pod("free")),
        Step(delete(PODS, "free", NO_UID), "409 Conflict"),
        Step(delete(PODS, "free", "its"), see={"metadata.deletionTimestamp": PRESENT}),
        Step(get(PODS, "free"), "404 NotFound"),
        Step(pod("bound", "node-x")),
        Step(
            delete(PODS, "bound", "its"),
            see={
                "metadata.deletionTimestamp": PRESENT,
                "metadata.deletionGracePeriodSeconds": 30,
                "metadata.generation": 2,
                "metadata.resourceVersion": NEW,
            },
        ),
        Step(get(PODS, "bound"), see={"metadata.deletionTimestamp": PRESENT}),
        Step(delete(PODS, "bound", "its"), see={"metadata.resourceVersion": SAME}),
        Step(pod("bound"), "409 AlreadyExists"),
        Step(
            patch(PODS, "bound", op("add", "/metadata/annotations", {"x": "1"}), uid="its"),
            see={"metadata.annotations": {"x": "1"}},
        ),
        Step(delete(PODS, "bound", "its", grace=5), see={"metadata.deletionTimestamp": PRESENT}),
        Step(delete(PODS, "bound", "its", grace=0)),
        Step(get(PODS, "bound"), "404 NotFound"),
        Step(delete(PODS, "bound", grace=0), "404 NotFound"),
        Step(pod("short", "node-x", terminationGracePeriodSeconds=7)),
        Step(delete(PODS, "short"), see={"metadata.deletionGracePeriodSeconds": 7}),
        Step(pod("dead", "node-x")),
        Step(status(PODS, "dead", {"phase": "Failed"})),
        Step(delete(PODS, "dead")),
        Step(get(PODS, "dead"), "404 NotFound"),
    ],
    "deleting other things": [
        Step(post(CONFIGMAPS, "a")),
        Step(delete(CONFIGMAPS, "a", "its"), see={"status": "Success", "details.name": "a"}),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
        Step(post(CONFIGMAPS, "f", {"finalizers": ["conformance.test/hold"]})),
        Step(
            delete(CONFIGMAPS, "f", "its"),
            see={"metadata.deletionTimestamp": PRESENT, "metadata.finalizers": PRESENT},
        ),
        Step(post(CONFIGMAPS, "f"), "409 AlreadyExists"),
        Step(
            patch(CONFIGMAPS, "f", op("remove", "/metadata/finalizers"), uid="its"),
            see={"metadata.name": "f"},
        ),
        Step(get(CONFIGMAPS, "f"), "404 NotFound"),
    ],
    "optimistic locking by PUT": [
        Step(post(LEASES, "a", spec={"holderIdentity": "x", "leaseDurationSeconds": 15})),
        Step(
            update(LEASES, "a", spec={"holderIdentity": "y", "leaseDurationSeconds": 15}),
            see={"spec.holderIdentity": "y", "metadata.resourceVersion": NEW},
        ),
        Step(update(LEASES, "a", "1", spec={"holderIdentity": "z"}), "409 Conflict"),
        Step(
            update(LEASES, "a", spec={"holderIdentity": "y", "leaseDurationSeconds": 15}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(delete(LEASES, "a")),
        Step(update(LEASES, "a", spec={"holderIdentity": "y"}), "409 Conflict"),
        Step(post(LEASES, "a", spec={"holderIdentity": "z", "leaseDurationSeconds": 15})),
        Step(
            # The predecessor's uid and version.
            lambda s: s.client.update(
                LEASES,
                s.obj(LEASES, "a", {"uid": NO_UID}, spec={"holderIdentity": "y"}),
            ),
            "409 Conflict",
        ),
    ],
    "generation counts the spec only": [
        Step(
            post(WIDGETS, "a", spec={"size": 1}, status={"ready": 1}),
            see={"metadata.generation": 1, "status": ABSENT},
        ),
        Step(
            status(WIDGETS, "a", {"ready": 2}),
            see={"metadata.generation": 1, "status.ready": 2, "spec.size": 1},
        ),
        Step(
            patch(WIDGETS, "a", op("replace", "/spec/size", 2), op("replace", "/status/ready", 9)),
            see={"metadata.generation": 2, "status.ready": 2},
        ),
        Step(
            patch(WIDGETS, "a", op("add", "/metadata/labels", {"x": "1"})),
            see={"metadata.generation": 2},
        ),
        Step(status(WIDGETS, "a", {"ready": 2}, strategic=True), "415 UnsupportedMediaType"),
        Step(
            # Custom resources ignore a uid here; our client finds out by the answer.
            status(WIDGETS, "a", {"ready": 4}, uid=NO_UID),
            "409 Conflict",
        ),
        Step(get(WIDGETS, "a"), see={"status.ready": 4}),
        Step(status(WIDGETS, "a", {"ready": 3}, resource_version="1"), "409 Conflict"),
        Step(
            lambda s: s.client.patch_json(
                WIDGETS,
                "a",
                [op("replace", "/status/ready", 3)],
                namespace=s.namespace,
                uid=NO_UID,
                subresource="status",
            ),
            "422 TestFailed",
        ),
        Step(
            apply(WIDGETS, "a", sub="status", uid=NO_UID, status={"ready": 5}),
            "409 Conflict",
        ),
        Step(get(WIDGETS, "a"), see={"status.ready": 5}),
        Step(
            apply(WIDGETS, "a", {"resourceVersion": "1"}, sub="status", status={"ready": 6}),
            "409 Conflict",
        ),
        Step(
            apply(WIDGETS, "a", {"resourceVersion": "1"}, spec={"size": 9}),
            "409 Conflict",
        ),
        Step(
            delete(WIDGETS, "a", propagation="Foreground"),
            see={"metadata.finalizers": ["foregroundDeletion"], "metadata.generation": 3},
        ),
    ],
}
