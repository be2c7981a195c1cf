"""Rule: bytes of another process give a bounded value or `WireError`, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hostile import VALUES, deep, places, put

from pdserve.terms import Device, Slo
from pdserve.terms.limits import UsageLimits
from pdserve.terms.shown import shown
from pdserve.wire import bounds
from pdserve.wire.bounds import MAX_PASSED_VERSION, MAX_VERSION, Fields, WireError, parse_json
from pdserve.wire.limit_exchange import AskedLimits, LimitReport, SubjectState
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import Peer, PeerNode, PeerTable
from pdserve.wire.routes import RouteGateway, RouteGroup, RouteInstance, RouteScenario, RouteTable

PEERS = PeerTable(
    "g-0",
    7,
    (
        Peer("p0", "prefill", "http://10.0.0.1:8000", "10.0.0.1:5600", "r1", {"leaf": "a"},
             (PeerNode("n1", (Device(0, "10.1.0.1"), Device(1))),)),
        Peer("d0", "decode", "http://[fd00::1]:8000", "[fd00::1]:5600", "r1"),
    ),
    {"leaf": 1},
    (("p0", "d0"),),
)  # fmt: skip
ROUTES = RouteTable(
    "shop",
    2**40,
    "m",
    "Reference",
    (
        RouteScenario(
            "chat",
            Slo(0.8, 0.2, 0.05, 0.99),
            (RouteGroup(0, "r1", (RouteInstance("p0", "prefill", "http://p0:8000", 2),)),),
            ("m",),
            {"x-tier": "gold"},
            (0.01, 0.001),
            70_000,
            limits=UsageLimits(60, 9000, 5),
        ),
    ),
    {"leaf": 1},
    (RouteGateway("shop-gateway-0", "http://10.0.0.9:9090"),),
)
LIMITS = LimitReport(
    "shop-gateway-1",
    (SubjectState("scenario:chat", UsageLimits(60), 2, -9, 1.5, 0.0),),
    (AskedLimits((0,), 20),),
)
DOCUMENTS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "peer table": (PEERS.to_json(), PeerTable.from_json),
    "route table": (ROUTES.to_json(), RouteTable.from_json),
    "link report": (LinkReport(3, frozenset({"d0"}), {"d1": "away"}, pulls={"d0": 9},
                               corrupt={"d0": 3}).to_json(),
                    LinkReport.from_json),
    "limit report": (LIMITS.to_json(), LimitReport.from_json),
    "drain report": (DrainReport(1, 2, 3).to_json(), DrainReport.from_json),
}  # fmt: skip
HOSTILE = (*VALUES, 10**400, b"x", "http://[::1", "http://x:99999", "ftp://x", deep())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_was_written_is_read_back(name: str) -> None:
    value, read = DOCUMENTS[name]
    assert read(parse_json(json.dumps(value))).to_json() == value
    assert read({**value, "addedLater": {"by": ["a", "newer", "version"]}}).to_json() == value


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_value_at_any_place_is_a_wire_error_or_a_bounded_value(name: str) -> None:
    value, read = DOCUMENTS[name]
    for path in places(value):
        for hostile in HOSTILE:
            try:
                found = read(put(value, path, hostile))
            except WireError as error:
                assert len(str(error)) < 400
            else:
                json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_missing_field_is_a_wire_error_that_names_it_or_has_a_default(name: str) -> None:
    value, read = DOCUMENTS[name]
    for path in places(value):
        if path and isinstance(path[-1], str):
            try:
                read(put(value, path, None))
            except WireError as error:
                assert f".{path[-1]}: " in str(error)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"version":1e999}', "not JSON"),
        (b"NaN", "not JSON"),
        (b"[Infinity]", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "not JSON"),
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deeper than 32"),
        (b"\xff\xfe\x00", "not JSON"),
        ('{"a": "é"}'.encode("latin-1"), "not JSON"),
        ("\ud800", "not JSON"),
        (b"", "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b" " * (bounds.MAX_BYTES + 1), "at most 1048576"),
    ],
)
def test_documents_that_are_refused(raw: bytes | str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        parse_json(raw)


def test_the_deepest_and_longest_documents_that_are_read() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32) is not None
    longest = b'"' + b"x" * (bounds.MAX_BYTES - 2) + b'"'
    assert len(parse_json(longest)) == bounds.MAX_BYTES - 2


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_json_or_a_wire_error(raw: bytes | str) -> None:
    try:
        parse_json(raw)
    except WireError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "role", "version", "instances", "a"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(DOCUMENTS)))
def test_any_value_is_read_or_a_wire_error(value: Any, name: str) -> None:
    try:
        DOCUMENTS[name][1](value)
    except WireError:
        return


@pytest.mark.parametrize("value", HOSTILE)
def test_messages_show_any_value_shortly(value: Any) -> None:
    assert len(shown(value)) < 100


def test_no_writer_claims_a_version_that_leaves_no_room_for_the_next() -> None:
    for version in (MAX_VERSION + 1, 2**63 - 1, 2**63):
        with pytest.raises(WireError, match="version"):
            LinkReport.from_json({"version": version, "up": [], "down": {}})
        with pytest.raises(WireError, match="version"):
            PeerTable.from_json({**PEERS.to_json(), "version": version})
    # What an instance makes the operator pass is far from the end of what readers take.
    assert MAX_PASSED_VERSION + 2**32 < MAX_VERSION


def test_fields_name_the_path() -> None:
    with pytest.raises(WireError, match=r"doc\.list\[1\]\.n: want a whole number of 0 to 9"):
        for entry in Fields({"list": [{"n": 1}, {"n": 10}]}, "doc").objects("list"):
            entry.integer("n", high=9)


RECORDED = (
    '{"group":"g-0","instances":[{"domains":{"leaf":"a"},"endpoint":"http://10.0.0.1:8000",'
    '"id":"p0","nodes":[{"devices":[{"id":0,"ip":"10.1.0.1"},{"id":1,"ip":null}],"name":"n1"}],'
    '"revision":"r1","role":"prefill","transfer":"10.0.0.1:5600"},{"domains":{},'
    '"endpoint":"http://[fd00::1]:8000","id":"d0","nodes":[],"revision":"r1","role":"decode",'
    '"transfer":"[fd00::1]:5600"}],"schemaVersion":1,"tierCosts":{"leaf":1},'
    '"unreachable":[["p0","d0"]],"version":7}'
)
"""As the release before instances had members wrote it."""


def test_a_table_of_one_member_instances_is_written_as_ever() -> None:
    assert PEERS.encoded() == RECORDED
    assert PeerTable.from_json(parse_json(RECORDED)) == PEERS


def test_other_members_stand_in_fields_that_older_readers_skip() -> None:
    leader, *rest = PEERS.instances
    other = PeerNode("n2", (Device(0, "10.1.0.2"),), "10.0.0.2:5600")
    table = PeerTable("g-0", 7, (replace(leader, nodes=(*leader.nodes, other)), *rest))
    first, second = table.to_json()["instances"][0]["nodes"]
    assert set(first) == {"name", "devices"}
    assert second["transfer"] == "10.0.0.2:5600"
    assert PeerTable.from_json(table.to_json()) == table
