"""The contract kit: every registered type passes it, and each check fails for what it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import engine_types as e

from pdserve.engines import registry, testing

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "tests" / "toy_engine"
BUILT_IN = registry.known()


@pytest.fixture
def others(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine types of tests, beside the built-in ones."""
    room = "tests.support.room_engine"
    faces = {
        "flow": f"from {room}.flow import FLOW\n",
        **{f: f"from toy_engine.{f} import {f.upper()}\n" for f in ("pod", "control", "metrics")},
    }
    e.package(site, "room_type", **faces)
    e.announce(site, {"Rooms": "room_type"})
    e.install(monkeypatch, TOY)
    yield
    e.uninstall(TOY)


def test_every_type_keeps_its_promises(others: None) -> None:
    assert set(registry.known()) == {*BUILT_IN, "Toy", "Rooms"}
    broken = {name: testing.broken_promises(name) for name in registry.known()}
    assert broken == {name: [] for name in registry.known()}


def test_the_type_of_the_page_is_one(site: Path) -> None:
    """docs/engines.md says that these lines are all that is needed."""
    page = (ROOT / "docs" / "engines.md").read_text()
    (code,) = re.findall(r"```python\n(# my_engine/flow.*?)```", page, re.DOTALL)
    modules = dict(re.findall(r"# my_engine/(\w+)\.py\n(.*?)(?=# my_engine/|\Z)", code, re.DOTALL))
    assert set(modules) == {"flow", "pod", "control", "metrics"}
    e.package(site, "my_engine", **modules)
    assert '[project.entry-points."pdserve.engines"]\nMyEngine = "my_engine"\n' in page
    e.announce(site, {"MyEngine": "my_engine"})
    assert testing.broken_promises("MyEngine") == []


def test_the_toy_is_small() -> None:
    files = [f for f in TOY.rglob("*") if f.suffix in ("", ".py", ".txt") and f.is_file()]
    lines = sum(len(f.read_text().splitlines()) for f in files)
    assert 50 < lines < 150
    page = (ROOT / "docs" / "engines.md").read_text()
    assert f"in {lines} lines" in page


FLOW = """
from dataclasses import dataclass, replace
from pdserve.engines.flow import EngineAnswer, LegRequest, PrefillOutcome
from pdserve.engines.pull_flow import FlowNames, PullFlow
import orjson, itertools
count = itertools.count()
class Flow(PullFlow):
{body}
FLOW = Flow({args})
"""
POD = """
from pdserve.engines.pod_parts import PodParts
import itertools
count = itertools.count()
class Pod:
    def parts(self, facts):
        return PodParts({args})
POD = Pod()
"""
GOOD = {
    "flow": FLOW.format(body="    pass", args=""),
    "pod": POD.format(args=""),
    "control": "from pdserve.engines.control import JsonControl\nCONTROL = JsonControl()\n",
    "metrics": (
        "from pdserve.engines.series import EngineSeries\n"
        "METRICS = EngineSeries({'alive': ('x',)})\n"
    ),
}


def flow(body: str = "    pass", args: str = "") -> dict[str, str]:
    return {"flow": FLOW.format(body=body, args=args)}


def pod(args: str) -> dict[str, str]:
    return {"pod": POD.format(args=args)}


def control(body: str) -> dict[str, str]:
    head = (
        "from dataclasses import replace\nfrom pdserve.engines.control import *\n"
        "from pdserve.wire.links import *\n"
    )
    return {"control": f"{head}class C(JsonControl):\n{body}\nCONTROL = C()\n"}


LEG = (
    "    def {leg}_leg(self, attempt, prepared):\n"
    "        one = super().{leg}_leg(attempt, prepared)\n"
)
BROKEN = [
    ("faces_load", {"metrics": "METRICS = 7\n"}, "is no EngineSeries"),
    ("legs_are_requests", flow(args="FlowNames(chat='no slash')"), "'no slash' is no path"),
    ("legs_are_requests", flow(args="FlowNames(release='/a b')"), "'/a b' is no path"),
    ("legs_are_requests", flow(args="FlowNames(request_id=b'X-Id')"), "want lower case"),
    ("legs_are_requests", flow(args="FlowNames(deadline_ms=b'host')"), "is the gateway's"),
    ("legs_are_requests", flow(
        LEG.format(leg="decode") + "        return replace(one, headers=((b'x', b'a\\r\\nb'),))"
    ), "header b'x' has"),
    ("legs_are_requests", flow(
        LEG.format(leg="prefill") + "        return replace(one, body=b'[]')"
    ), "no JSON object"),
    ("legs_keep_the_clients_request", flow(
        LEG.format(leg="decode") +
        "        return replace(one, body=orjson.dumps({**orjson.loads(one.body), 'seed': 1}))"
    ), "changes 'seed'"),
    ("legs_keep_the_clients_request", flow(
        LEG.format(leg="decode") +
        "        return replace(one, body=one.body.replace(b'include_usage', b'x'))"
    ), "asks no usage"),
    ("clients_choose_no_kv", flow(
        "    def prepare_prefill(self, endpoint, body):\n"
        "        return orjson.dumps({'kv': {}, **body})"
    ), "KV parameters reach an engine"),
    ("attempts_differ", flow(
        LEG.format(leg="prefill") +
        "        return replace(one, headers=(*one.headers, (b'x', b'%d' % next(count))))"
    ), "more than its arguments"),
    ("attempts_differ", flow(
        LEG.format(leg="prefill") + "        return replace(one, headers=())"
    ), "cannot tell two attempts apart"),
    ("junk_replies_are_flow_errors", flow(
        "    def read_prefill(self, body, reply):\n"
        "        orjson.loads(reply)\n        return super().read_prefill(body, reply)"
    ), "JSONDecodeError"),
    ("junk_replies_are_flow_errors", flow(
        "    def read_prefill(self, body, reply):\n"
        "        try:\n            kv = orjson.loads(reply)['kv_transfer_params']\n"
        "            return PrefillOutcome(False, kv, kv['remote_request_id'], 1, 0, {})\n"
        "        except Exception:\n            return super().read_prefill(body, reply)"
    ), "would be two headers"),
    ("streams_go_on", flow(
        "    def continued(self, body, kv, sent):\n        return {**body, 'seed': kv['seed']}"
    ), "KeyError"),
    ("streams_go_on", flow(
        "    def continued(self, body, kv, sent):\n        return body"
    ), "does not learn"),
    ("streams_go_on", flow(
        "    def continued(self, body, kv, sent):\n        return body", "order='together'"
    ), "answers first"),
    ("heads_are_classified", flow(
        "    def read_head(self, status, headers):\n"
        "        return EngineAnswer('accepted' if status < 300 else 'failed')"
    ), "201 is accepted"),
    ("heads_are_classified", flow(
        "    def read_head(self, status, headers):\n"
        "        return EngineAnswer('accepted' if status == 200 else 'failed')"
    ), "429 is failed"),
    ("heads_are_classified", flow(
        "    def read_head(self, status, headers):\n"
        "        if status == 503: return EngineAnswer('refused', 'busy')\n"
        "        return super().read_head(status, headers)"
    ), "reason 'busy'"),
    ("heads_are_classified", flow(
        "    def read_head(self, status, headers):\n"
        "        if status == 404: return EngineAnswer('client_error')\n"
        "        return super().read_head(status, headers)"
    ), "404 is client_error"),
    ("hints_never_raise", flow(
        "    def read_hint(self, headers):\n        return int(headers.get(b'x-pdserve-slots', 1))"
    ), "ValueError"),
    ("hints_never_raise", flow(
        "    def read_hint(self, headers):\n        return 1"
    ), "has a hint"),
    ("constants_make_sense", flow(args="order='decode_first'"), "order 'decode_first'"),
    ("constants_make_sense", flow(args="first_token='third'"), "first_token 'third'"),
    ("constants_make_sense", flow(args="lease_seconds=2.0"), "lease_seconds 2.0"),
    ("constants_make_sense", flow(args="lease_seconds=float('inf')"), "lease_seconds inf"),
    ("pods_are_restricted", pod(
        "volumes=({'name': 'h', 'hostPath': {'path': '/'}},)"
    ), "the profile restricted forbids"),
    ("pods_are_restricted", pod(
        "containers=({'name': 'p', 'image': 'i', 'securityContext': {'privileged': True}},)"
    ), "the profile restricted forbids"),
    ("pods_are_restricted", pod("containers=({'name': 'engine', 'image': 'i'},)"), "of one name"),
    ("pods_are_restricted", pod("env={'PDSERVE_ROLE': 'x'}"), "set twice"),
    ("parts_are_plain", pod("args=(str(next(count)),)"), "more than the facts"),
    ("parts_are_plain", pod("args=(facts.slots,)"), "no text"),
    ("parts_are_plain", pod("args=('--model=' + facts.model,)"), "expands a model's name"),
    ("parts_are_plain", pod(
        "args=('--model', facts.model.replace('$', '$$'))"
    ), "read as a flag"),
    ("parts_are_plain", pod("ready_path='ready'"), "'ready' is no path"),
    ("control_speaks_json", control(
        "    def put_peers(self, table): return ControlRequest('PUT', '/p', {})"
    ), "version is not pushed"),
    ("control_speaks_json", control(
        "    def get_links(self): return ControlRequest('GET', 'links')"
    ), "is no path"),
    ("control_speaks_json", control(
        "    def post_drain(self): return ControlRequest('POST', '/d', None, frozenset({202}))"
    ), "200 is no answer"),
    ("control_speaks_json", control(
        "    def post_drain(self): return ControlRequest('POST', '/d', None, frozenset({200, 500}))"
    ), "takes an error"),
    ("control_speaks_json", control(
        "    def read_drain(self, answer): return DrainReport(len(eval(answer)), 0, 0)"
    ), "SyntaxError"),
    ("series_tell_who_is_alive", {"metrics": GOOD["metrics"].replace("alive", "steps")}, "'alive'"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "faces", "says"), BROKEN)
def test_a_check_finds_what_it_is_about(
    site: Path, check: str, faces: dict[str, str], says: str
) -> None:
    e.package(site, "acme_engine", **{**GOOD, **faces})
    e.announce(site, {"Acme": "acme_engine"})
    found = testing.broken_promises("Acme")
    assert any(line.startswith(f"{check}: ") and says in line for line in found), found


def test_the_adapter_that_they_spoil_is_a_good_one(site: Path) -> None:
    e.package(site, "acme_engine", **GOOD)
    e.announce(site, {"Acme": "acme_engine"})
    assert testing.broken_promises("Acme") == []


def test_every_check_has_a_row() -> None:
    assert {check for check, _, _ in BROKEN} == {check.__name__ for check in testing.CHECKS}
