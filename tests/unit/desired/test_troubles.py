"""What is reported of a download of weights, from what a kubelet reports of its container."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.desired.troubles import Trouble, of_instances
from pdserve.topology import pod_view

WORDS = "weights are not downloaded: https://h/m.gguf: the server answers 401"
FAILED = {"terminated": {"exitCode": 1, "message": WORDS}}
DONE = {"terminated": {"exitCode": 0}}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
PULL = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
TOLD = ("ModelDownloadFailed", f"pod p: {WORDS}")


def troubles(state: Any, last: Any = None, name: str = "pdserve-model") -> list[tuple[str, str]]:
    status = {"name": name, "state": state, "lastState": last or {}}
    waiting = {"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}
    pod = {
        "metadata": {"name": "p"},
        "status": {"initContainerStatuses": [status], "containerStatuses": [waiting]},
    }
    found = of_instances([pod_view(pod)])
    return [(t.reason, t.message) for t in found if isinstance(t, Trouble)]


@pytest.mark.parametrize(
    ("state", "last", "want"),
    [
        pytest.param({"running": {}}, None, [], id="it goes on"),
        pytest.param(FAILED, None, [TOLD], id="it failed"),
        pytest.param({"running": {}}, FAILED, [TOLD], id="it is tried again"),
        pytest.param(DONE, FAILED, [], id="it succeeded then"),
        pytest.param(DONE, None, [], id="it succeeded"),
        pytest.param(PULL, None, [("ImageError", "pod p: ErrImagePull: no such image")],
                     id="its image cannot be pulled"),
        pytest.param({"terminated": {"exitCode": 137}}, None, [], id="killed without a word"),
    ],
)  # fmt: skip
def test_what_is_reported_of_a_download(state: Any, last: Any, want: list[tuple[str, str]]) -> None:
    assert troubles(state, last) == want


def test_while_it_waits_for_the_next_try_its_words_come_first() -> None:
    assert troubles(BACK_OFF, FAILED)[0] == TOLD


def test_init_containers_of_a_template_are_reported_as_before() -> None:
    assert troubles(FAILED, name="mine") == []
    assert troubles(BACK_OFF, FAILED, "mine") == [
        ("CrashLoop", "pod p: CrashLoopBackOff: back-off 10s")
    ]
