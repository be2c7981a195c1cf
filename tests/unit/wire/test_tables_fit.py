"""Rule: at the API's bounds a table fits one ConfigMap (1 MiB), and says the same to readers."""

from __future__ import annotations

import random

import pytest

from pdserve.api import PDService
from pdserve.api.common import MAX_INSTANCES
from pdserve.api.pdservice import MAX_MATCH_TEXT, MAX_SERVICE_INSTANCES
from pdserve.api.rocedomain import MAX_LEVELS
from pdserve.desired.routing import route_table
from pdserve.dst.world_service import service
from pdserve.forwarding.scenario_view import View
from pdserve.terms import Device, Role, Slo
from pdserve.terms.limits import MAX_LIMIT, UsageLimits
from pdserve.wire.bounds import MAX_BYTES, MAX_VERSION, parse_json
from pdserve.wire.peers import Peer, PeerNode, PeerTable
from pdserve.wire.routes import (
    FULL_BYTES,
    MAX_GATEWAYS,
    RouteGateway,
    RouteGroup,
    RouteInstance,
    RouteScenario,
    RouteTable,
    encoded,
    fitted,
)

LEVELS = tuple(f"level-{n}-".ljust(20, "x") for n in range(MAX_LEVELS))
IPV6 = "2001:0db8:85a3:0000:0000:8a2e:0370:7334"


def place(level: int, value: int) -> str:
    return f"{level}.{value}.".ljust(63, "v")


def instance(number: int, role: Role, rng: random.Random) -> RouteInstance:
    domains = {
        name: place(level, rng.randrange(1 + 2048 * level // MAX_LEVELS))
        for level, name in enumerate(LEVELS)
    }
    return RouteInstance(
        f"{role[0]}{number}-".ljust(63, "i"), role, f"http://[{IPV6}]:65535", 4096, domains
    )


def widest(per_group: int = 2, letter: str = "\U0001f980") -> RouteTable:
    """As many groups, levels and letters as the API lets in."""
    rng = random.Random(1)
    count = MAX_SERVICE_INSTANCES // per_group
    roles: tuple[Role, ...] = ("prefill", "decode")
    groups = tuple(
        RouteGroup(
            63,
            "r" * 63,
            tuple(instance(n * per_group + i, roles[i % 2], rng) for i in range(per_group)),
        )
        for n in range(count)
    )
    share = -(-count // 32)
    text = MAX_MATCH_TEXT // 32 // 2
    scenarios = tuple(
        RouteScenario(
            f"s{n}".ljust(20, "s"),
            Slo(599.999, 599.999, 599.999, 0.999),
            groups[n * share : (n + 1) * share],
            (letter * text,),
            {"h" * 64: letter * (text - 64)},
            (0.00012, 0.00012),
            2**31 - 1,
            limits=UsageLimits(MAX_LIMIT, MAX_LIMIT, MAX_LIMIT),
        )
        for n in range(32)
    )
    costs = {name: 1 + level for level, name in enumerate(LEVELS)}
    gateways = tuple(
        RouteGateway(f"g{n}-".ljust(63, "g"), f"http://[{IPV6}]:65535") for n in range(MAX_GATEWAYS)
    )
    return RouteTable(
        "s" * 30, MAX_VERSION - 1, letter * 256, "Reference", scenarios, costs, gateways
    )


@pytest.mark.parametrize("letter", ["\U0001f980", '"', "\\", "é"])
@pytest.mark.parametrize("per_group", [2, 128])
def test_the_largest_route_table_fits(per_group: int, letter: str) -> None:
    table = widest(per_group, letter)
    assert sum(len(g.instances) for s in table.scenarios for g in s.groups) == MAX_SERVICE_INSTANCES
    assert len(encoded(table).encode()) > MAX_BYTES, "or there would be nothing to show"
    small = fitted(table)
    text = encoded(small)
    assert len(text.encode()) < MAX_BYTES
    assert RouteTable.from_json(parse_json(text)) == small
    assert fitted(small) == small


def test_numbered_places_give_gateways_the_same_distances() -> None:
    table = widest(128)
    small = fitted(table)
    for before, after in zip(table.scenarios, small.scenarios, strict=True):
        ours, theirs = View(before, table.tier_costs), View(after, small.tier_costs)
        for group, other in zip(ours.groups, theirs.groups, strict=True):
            distances = [
                [view.distance(p, d) for p in g.prefills for d in g.decodes[::7]]
                for view, g in ((ours, group), (theirs, other))
            ]
            assert distances[0] == distances[1]


def test_an_ordinary_table_keeps_the_fabric_s_own_words() -> None:
    table = widest()
    few = RouteTable("shop", 1, "m", "Reference", (table.scenarios[0],), table.tier_costs)
    assert len(encoded(few).encode()) <= FULL_BYTES
    assert fitted(few) is few


def test_an_unchanged_large_table_is_not_written_again() -> None:
    wide = widest()
    shop = PDService.parse(service(scenarios=[s.name for s in wide.scenarios]))
    groups = {s.name: s.groups for s in wide.scenarios}
    first = route_table(shop, None, groups, {}, RouteTable("shop", 7, "", "", (), wide.tier_costs))
    assert first.version == 8
    assert len(encoded(first).encode()) < MAX_BYTES
    stored = RouteTable.from_json(parse_json(encoded(first)))
    assert stored == first


@pytest.mark.parametrize("devices", [64, 1024])
def test_the_largest_peer_table_fits(devices: int) -> None:
    """Each instance beside its substitute; 1,024 devices is what a node's annotation may name."""
    roles: tuple[Role, ...] = ("prefill", "decode")
    nodes = (PeerNode("n" * 253, tuple(Device(65535, "f" * 64) for _ in range(devices))),)
    peers = tuple(
        Peer(
            f"{role[0]}{n}".ljust(63, "i"), role, f"http://[{IPV6}]:65535", f"[{IPV6}]:65535",
            "r" * 63, {name: place(9, n) for name in LEVELS}, nodes,
        )
        for role in roles
        for n in range(2 * MAX_INSTANCES)
    )  # fmt: skip
    table = PeerTable("g" * 60, MAX_VERSION, peers, dict.fromkeys(LEVELS, 1_000_000))
    assert len(table.encoded().encode()) > MAX_BYTES
    small = table.fitted()
    assert len(small.encoded().encode()) < MAX_BYTES
    assert PeerTable.from_json(parse_json(small.encoded())) == small
    assert [(p.id, p.transfer, p.domains) for p in small.instances] == [
        (p.id, p.transfer, p.domains) for p in peers
    ]
