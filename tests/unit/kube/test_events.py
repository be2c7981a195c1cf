"""The event recorder: counted, limited, and never in the way."""

from __future__ import annotations

import asyncio
import itertools

from pdserve.dst.api_net import Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.exposition import Registry
from pdserve.kube import events
from pdserve.kube.events import EventRecorder, Reporter
from pdserve.kube.resource import EVENTS, Object

_UIDS = itertools.count()


def pod(name: str = "a", namespace: str | None = "default") -> Object:
    meta = {"name": name, "uid": f"uid-{next(_UIDS)}", "resourceVersion": "5"}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"big": "x" * 1000}}


class Scene:
    def __init__(self, **faults: float) -> None:
        self.api = FakeApi()
        self.faults = Faults(**faults)  # type: ignore[arg-type]
        self.registry = Registry()
        self.recorder = EventRecorder(
            self.api.client(self.faults), Reporter("test", "test-1"), ("Placed", "Linked"),
            registry=self.registry, wall=lambda: events.datetime(2026, 1, 1, tzinfo=events.UTC),
        )  # fmt: skip
        self.task = asyncio.create_task(self.recorder.run())

    def written(self) -> list[Object]:
        return self.api.objects(EVENTS)

    def dropped(self, why: str) -> float:
        return self.registry.value("pdserve_events_dropped_total", why)


@virtual_time
async def test_one_event_says_who_what_and_why() -> None:
    scene = Scene()
    subject = pod()
    scene.recorder.event(subject, "Warning", "Placed", "On node-1.", action="Place")
    await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    (written,) = scene.written()
    assert written["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "default",
        "uid": subject["metadata"]["uid"], "resourceVersion": "5",
    }  # fmt: skip
    assert written["type"] == "Warning"
    assert (written["reason"], written["message"]) == ("Placed", "On node-1.")
    assert (written["action"], written["count"]) == ("Place", 1)
    assert written["reportingComponent"] == "test"
    assert written["reportingInstance"] == "test-1"
    assert written["firstTimestamp"] == "2026-01-01T00:00:00Z"


@virtual_time
async def test_equal_events_are_one_with_a_count() -> None:
    scene = Scene()
    subject = pod()
    for _ in range(5):
        scene.recorder.event(subject, "Normal", "Placed", "Same.")
        await asyncio.sleep(30)
    scene.recorder.event(subject, "Normal", "Placed", "Different.")
    scene.recorder.event(subject, "Normal", "Linked", "Same.")
    await asyncio.sleep(1)
    assert sorted((e["message"], e["reason"], e["count"]) for e in scene.written()) == [
        ("Different.", "Placed", 1),
        ("Same.", "Linked", 1),
        ("Same.", "Placed", 5),
    ]


@virtual_time
async def test_after_the_window_a_new_event_begins() -> None:
    scene = Scene()
    subject = pod()
    scene.recorder.event(subject, "Normal", "Placed", "Same.")
    await asyncio.sleep(events.WINDOW + 1)
    scene.recorder.event(subject, "Normal", "Placed", "Same.")
    await asyncio.sleep(1)
    assert [e["count"] for e in scene.written()] == [1, 1]


@virtual_time
async def test_an_event_that_expired_on_the_server_is_written_anew_with_its_count() -> None:
    scene = Scene()
    subject = pod()
    scene.recorder.event(subject, "Normal", "Placed", "Same.")
    await asyncio.sleep(1)
    (old,) = scene.written()
    await scene.api.client().delete(EVENTS, old["metadata"]["name"], namespace="default")
    scene.recorder.event(subject, "Normal", "Placed", "Same.")
    await asyncio.sleep(1)
    assert [e["count"] for e in scene.written()] == [2]


@virtual_time
async def test_each_object_has_its_own_limit_and_no_count_is_lost() -> None:
    scene = Scene()
    noisy, quiet = pod("noisy"), pod("quiet")
    for index in range(100):
        scene.recorder.event(noisy, "Normal", "Placed", f"Note {index}.")
    for _ in range(50):
        scene.recorder.event(noisy, "Normal", "Linked", "Again.")
    scene.recorder.event(quiet, "Normal", "Placed", "Hello.")
    await asyncio.sleep(1)
    names = [e["involvedObject"]["name"] for e in scene.written()]
    assert names.count("noisy") == events.BURST
    assert names.count("quiet") == 1
    assert scene.dropped("rate") == 90 + 50
    await asyncio.sleep(events.REFILL_SECONDS)
    scene.recorder.event(noisy, "Normal", "Linked", "Again.")
    await asyncio.sleep(1)
    assert [e["count"] for e in scene.written() if e["reason"] == "Linked"] == [51]


@virtual_time
async def test_nothing_is_ever_raised_into_the_caller() -> None:
    scene = Scene()
    scene.recorder.event(pod(), "Normal", "Unlisted", "A reason that is not declared.")
    assert scene.dropped("unknown_reason") == 1
    scene.recorder.event({"no": "metadata"}, "Normal", "Placed", "Malformed.")
    assert scene.dropped("error") == 1
    scene.faults.down = True
    scene.recorder.event(pod(), "Normal", "Placed", "Unreachable.")
    await asyncio.sleep(1)
    assert scene.dropped("error") == 2
    scene.faults.down = False
    scene.recorder.event(pod(), "Normal", "Placed", "Back.")
    await asyncio.sleep(1)
    assert [e["message"] for e in scene.written()] == ["Back."]


@virtual_time
async def test_the_backlog_is_bounded() -> None:
    scene = Scene(latency=(1, 1))  # type: ignore[arg-type]
    for index in range(events.MAX_PENDING + 50):
        scene.recorder.event(pod(str(index)), "Normal", "Placed", "One each.")
    assert scene.dropped("full") == 50


@virtual_time
async def test_cluster_scoped_objects_have_their_events_in_default() -> None:
    scene = Scene()
    scene.recorder.event(pod("fabric", None), "Normal", "Placed", "x" * 5000)
    await asyncio.sleep(1)
    (written,) = scene.written()
    assert written["metadata"]["namespace"] == "default"
    assert len(written["message"]) == events.MAX_NOTE
