"""The API server takes pods of instances of several members, whatever their engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.rendered_pod import NEW, OWNER, render
from tests.support.rest import Rest

pytestmark = pytest.mark.api

NAMESPACE = "member-pods"
LEADER = replace(NEW, members=2)
MEMBER = replace(NEW, name=f"{NEW.name}-m1", member=1, members=2, leader_uid="u-leader")


@pytest.mark.parametrize("type_name", ["Reference", "vLLM", "SGLang", "vLLM-Ascend", "MindIE"])
def test_the_pods_of_an_instance_are_taken(rest: Rest, type_name: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"metadata": {"name": NAMESPACE, "labels": labels}}
    assert rest.create("/api/v1/namespaces", namespace).code in (201, 409)
    for new in (LEADER, MEMBER):
        edits = {
            "spec.engine.type": type_name,
            "metadata.namespace": NAMESPACE,
            "spec.prefill.instance.nodes": 2,
        }
        pod = render(edits, new)
        assert pod["metadata"]["ownerReferences"] == [OWNER]
        answer = rest.create(f"/api/v1/namespaces/{NAMESPACE}/pods", pod, dryRun="All")
        assert answer.code == 201, answer.body
        (made,) = (c for c in answer.body["spec"]["containers"] if c["name"] == "engine")
        (sent,) = (c for c in pod["spec"]["containers"] if c["name"] == "engine")
        assert made["args"] == sent["args"]
