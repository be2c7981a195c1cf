"""Which pods say that their instance may change its role."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.rendered_pod import env, render

from pdserve.wire import names

ALIKE: dict[str, Any] = {}
"""The two roles of the sample differ in counts and slots alone."""


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        (ALIKE, "true"),
        ({"spec.decode.maxConcurrency": 64}, "true"),
        ({"spec.decode.args": ["--prefetch", "1"]}, None),
        ({"spec.decode.env": [{"name": "X", "value": "1"}]}, None),
        ({"spec.decode.startupDeadlineSeconds": 61}, None),
        ({"spec.engine.type": "vLLM"}, None),
    ],
)
def test_only_pods_that_differ_in_nothing_but_the_role_flip(
    changes: dict[str, Any], want: str | None
) -> None:
    pod = render(changes)
    assert pod["metadata"]["annotations"].get(names.ANNOTATION_FLIPS) == want
    # As its label says when it starts: an engine that restarts after a flip has its new role.
    label = {"fieldRef": {"fieldPath": f"metadata.labels['{names.LABEL_ROLE}']"}}
    assert env(pod)["PDSERVE_ROLE"] == (label if want else "prefill")
