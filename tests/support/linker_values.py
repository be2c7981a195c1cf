"""Tables and credentials for tests of the linker."""

from __future__ import annotations

from pdserve.desired.service_credentials import ServiceCredentials, Terms
from pdserve.kube.resource import ObjectKey
from pdserve.wire.peers import Peer, PeerTable

KEY = ObjectKey("prod", "shop-chat")
HELD = ServiceCredentials(("op",), ("gw",), ("kv",), shared="old")
TERMS = Terms(HELD.revision, True, frozenset(), frozenset())


def table(version: int) -> PeerTable:
    return PeerTable(
        "shop-chat-0",
        version,
        (
            Peer("p0", "prefill", "http://127.0.0.1:1", "127.0.0.1:2", "r"),
            Peer("d0", "decode", "http://127.0.0.1:3", "127.0.0.1:4", "r"),
        ),
    )
