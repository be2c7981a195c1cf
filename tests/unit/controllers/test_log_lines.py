"""K6.6: the operator's log says what it placed, created, deleted, decided and refused, and no more.

One line at INFO for each; an operator with nothing to do logs nothing; no line holds a secret.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import pytest

from pdserve.controllers.logs import JsonLines, TextLines, set_up
from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.lines import say
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import PODS, SECRETS, Object
from pdserve.wire import names


class Lines(logging.Handler):
    """Lines of pdserve's own loggers, as the JSON format writes them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonLines())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def told(self, reason: str = "") -> list[dict[str, Any]]:
        """Lines at INFO and above (with this reason)."""
        lines = [json.loads(text) for text in self.texts]
        return [
            line
            for line in lines
            if line["severity"] != "DEBUG" and reason in ("", line.get("reason"))
        ]


@contextmanager
def listening() -> Iterator[Lines]:
    log, lines = logging.getLogger("pdserve"), Lines()
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def is_instance(pod: Object) -> bool:
    return names.LABEL_ROLE in pod["metadata"].get("labels", {})


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


@virtual_time
async def test_k6_6_placed_created_decided_and_deleted_are_one_line_each() -> None:
    world = make()
    world.create(
        PDSERVICES,
        service(ratio={"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 2}}),
    )
    with listening() as lines:
        async with world.running(), world.operator():
            await world.until(world.service_ready)
            (placed,) = lines.told("GroupCreated")
            assert placed["namespace"] == NS and placed["name"] == "shop-chat"
            assert placed["index"] == 0 and placed["nodes"]
            created = lines.told("InstanceCreated")
            pods = {p["metadata"]["name"]: p for p in world.instances()}
            assert {c["instance"] for c in created} == pods.keys() and len(created) == 3
            for line in created:
                assert line["node"] == pods[line["instance"]]["spec"]["nodeName"]
                assert (line["namespace"], line["name"]) == (NS, "shop-chat")
            (decided,) = [line for line in lines.told() if line.get("outcome") == "Applied"]
            assert (decided["service"], decided["scenario"]) == ("shop", "chat")
            assert "1 x 1P2D" in decided["message"] and decided["reason"]

            lost = created[0]["instance"]
            world.kill(lost)
            await world.until(lambda: lines.told("InstanceSubstituted") != [])
            (substituted,) = lines.told("InstanceSubstituted")
            assert substituted["instance"] != lost and substituted["node"]
            await world.until(
                lambda: lost not in {p["metadata"]["name"] for p in world.instances()}
            )
            assert lost in {line["instance"] for line in lines.told("InstanceDeleted")}

            body = {"spec": {"scenarios": [{**service()["spec"]["scenarios"][0], "ratio": {
                "mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1},
                "prefill": {"min": 1, "max": 4}, "decode": {"min": 1, "max": 4}}}]}}  # fmt: skip
            world.patch(PDSERVICES, NS, "shop", body)
            await world.until(lambda: len(world.instances()) == 2, 400)
            (drained,) = {line["instance"] for line in lines.told("InstanceDraining")} - {lost}
            assert drained in {line["instance"] for line in lines.told("InstanceDeleted")}


@virtual_time
async def test_k6_6_an_idle_operator_logs_nothing_and_no_line_has_a_secret() -> None:
    world = make()
    world.create(PDSERVICES, service())
    with listening() as lines:
        async with world.running(), world.operator():
            await world.until(world.service_ready)
            await asyncio.sleep(120)
            before = len(lines.told())
            assert before > 0
            await asyncio.sleep(3600)
            assert lines.told()[before:] == []
        held = [secret.get("data") or {} for secret in world.seen(SECRETS)]
        values = [base64.b64decode(v).decode(errors="ignore") for d in held for v in d.values()]
        secrets = {part for value in values for part in value.split() if len(part) >= 16}
        assert secrets, "there is something to leak"
        assert not [text for text in lines.texts if any(secret in text for secret in secrets)]


@virtual_time
async def test_k6_6_what_does_not_fit_is_one_line() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=8, groups=(4, 4)))
    with listening() as lines:
        async with world.running(), world.operator():
            await world.until(lambda: lines.told("NoFit") != [])
            await asyncio.sleep(500)
            said = [line["message"] for line in lines.told("NoFit")]
            assert len(said) == len(set(said)) <= 2
            assert lines.told("NoFit")[0]["name"] == "shop-chat"


@virtual_time
async def test_k6_6_a_refusal_is_one_line_however_often_it_is_tried() -> None:
    world = make()
    handle = world.api.handle

    def guarded(request: KubeRequest) -> Object:
        made = request.verb == "create" and request.resource == PODS and request.body is not None
        if made and "dryRun" not in request.query and is_instance(request.body or {}):
            raise KubeError(403, "Forbidden", "exceeded quota: small")
        return handle(request)

    world.create(PDSERVICES, service())
    world.api.handle = guarded  # type: ignore[method-assign]
    with listening() as lines:
        async with world.running(), world.operator():
            await world.until(lambda: lines.told("CreateFailed") != [])
            await asyncio.sleep(500)
            (refused,) = lines.told("CreateFailed")
            assert "exceeded quota: small" in refused["message"]
            assert (refused["namespace"], refused["name"]) == (NS, "shop-chat")


def record(message: str, **fields: str | int | None) -> logging.LogRecord:
    kept: list[logging.LogRecord] = []
    log = logging.Logger("pdserve.test")

    def keep(made: logging.LogRecord) -> bool:
        kept.append(made)
        return True

    log.addFilter(keep)
    say(log, message, **fields)
    return kept[0]


def test_k6_6_json_lines_have_the_fields_beside_the_message() -> None:
    line = json.loads(JsonLines().format(record("Gone: a\nb", node="n 1", index=0, role=None)))
    assert line.pop("time")
    assert line == {"severity": "INFO", "logger": "pdserve.test", "message": "Gone: a\nb",
                    "node": "n 1", "index": 0}  # fmt: skip


def test_k6_6_a_field_cannot_stand_for_the_severity() -> None:
    assert json.loads(JsonLines().format(record("x", severity="ERROR")))["severity"] == "INFO"


def test_k6_6_text_lines_are_one_line_with_quoted_fields() -> None:
    text = TextLines().format(record("Gone: a\nb", node='n "1"', index=0, instance="x"))
    assert text.endswith('pdserve.test: Gone: a\\nb node="n \\"1\\"" index=0 instance=x')
    assert "\n" not in text


@pytest.mark.parametrize(("level", "seen"), [("debug", 2), ("info", 1), ("warning", 0)])
def test_k6_6_the_level_decides_what_is_logged(
    level: str, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before, stream = (root.level, root.handlers[:]), StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    try:
        root.handlers = []
        set_up("json", level)
        logging.getLogger("pdserve.x").debug("details")
        say(logging.getLogger("pdserve.x"), "placed", node="n")
    finally:
        root.setLevel(before[0])
        root.handlers = before[1]
    assert len(stream.getvalue().splitlines()) == seen
