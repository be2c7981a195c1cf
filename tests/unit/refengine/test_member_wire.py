"""What a member takes from a connection, and a leader from an answer, of any content."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.support.engines import fresh_host

from pdserve.engines.trust import Proof, Trust
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.members.handshake import MemberIdentity, greet
from pdserve.refengine.members.links import MemberLink
from pdserve.refengine.members.messages import HEAD, MemberGoneError, MemberKind, MemberStream
from pdserve.refengine.members.worker import MemberWorker
from pdserve.refengine.model.layer_share import layer_shares
from pdserve.wire.credentials import Grant, digest, member_key

if TYPE_CHECKING:
    from pdserve.refengine.model.loader import LoadedModel

KEY = "5e" * 32
BLOCKS = 8
LEADER = MemberIdentity("p0", 0, 2, "weights", "bits")


class Site:
    """A member that listens, and ways to connect to it."""

    def __init__(self, model: LoadedModel) -> None:
        assert model.staged is not None
        self.shares = layer_shares(model.config.layers, 2)
        me = replace(LEADER, member=1)
        self.worker = MemberWorker(
            me, model.staged, model.config, self.shares[1], lambda: (Proof(KEY),)
        )
        self.host = fresh_host()
        self.port = self.worker.start(self.host, 0)

    def stream(self) -> MemberStream:
        return MemberStream(socket.create_connection((self.host, self.port), 5), "p0-m1")

    def greeted(self, key: str = KEY, **changed: Any) -> MemberLink:
        stream = self.stream()
        me = replace(LEADER, **changed)
        try:
            greet(stream, me, 1, BLOCKS, self.shares[1], lambda: (Proof(key),))
        except MemberGoneError:
            stream.close()
            raise
        return MemberLink(stream, self.shares[1])


@pytest.fixture(scope="module")
def share() -> LoadedModel:
    """The built-in model with the second half of its layers."""
    from pdserve.refengine.model.loader import load_model

    return load_model(None, members=2, member=1)


@pytest.fixture
def site(share: LoadedModel) -> Iterator[Site]:
    made = Site(share)
    yield made
    made.worker.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def step(link: MemberLink, rows: object, tables: Any, x: Any) -> Any:
    parts = (memoryview(tables).cast("B"), memoryview(x).cast("B"))
    return link.ask(MemberKind.STEP, {"rows": rows}, parts, MemberKind.STEPPED, x.nbytes)


def test_what_was_written_is_read_and_computed_on(site: Site, share: LoadedModel) -> None:

    link = site.greeted()
    until(lambda: site.worker.leader_there)
    shape = (2, site.shares[1].count, 2, share.config.block_floats // share.config.layers // 2)
    kv = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    link.ask(MemberKind.WRITE, {"blocks": [3, 5]}, (memoryview(kv.tobytes()),),
             MemberKind.WRITTEN, 0)  # fmt: skip
    got = link.ask(MemberKind.READ, {"blocks": [5]}, (), MemberKind.BLOCKS, kv[1].nbytes)
    assert np.array_equal(got.view(np.float32), kv[1].ravel())
    x = np.ones((1, 8, share.config.hidden), np.float32)
    out = step(link, [[0, 3, 1]], np.asarray([3]), x)
    assert not np.array_equal(out.view(np.float32), x.ravel())
    link.close()
    until(lambda: not site.worker.leader_there)


@pytest.mark.parametrize(
    ("why", "key", "changed"),
    [
        ("no such key", "0" * 64, {}),
        ("another model", KEY, {"model": "other"}),
        ("3 there", KEY, {"members": 3}),
        ("wrong key", KEY, {"member": 2}),
        ("answers at its address", KEY, {"instance": "p1"}),
    ],
)
def test_who_is_not_the_leader_is_refused(
    site: Site, why: str, key: str, changed: dict[str, Any]
) -> None:
    leader = site.greeted()
    with pytest.raises(MemberGoneError, match=why):
        site.greeted(key, **changed)
    leader.ping()
    assert leader.broken is None, "the leader that is there is not disturbed"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"rows": []}, 0),
        ({"rows": [[0, 1]]}, 0),
        ({"rows": [[0, 1 << 40, 1]]}, 0),
        ({"rows": [[-1, 1, 1]]}, 0),
        ({"rows": [[0, 1, 1 << 30]]}, 0),
        ({"rows": [[0, True, 1]]}, 0),
        ({"rows": [[40, 1, 1]]}, 0),
        ({"rows": [[0, 1, 1]]}, 7),
        ({"rows": "x"}, 0),
    ],
)
def test_a_step_that_makes_no_sense_ends_the_connection_and_no_more(
    site: Site, fields: Any, size: int
) -> None:
    link = site.greeted()
    with pytest.raises(MemberGoneError):
        link.ask(MemberKind.STEP, fields, (memoryview(bytes(size)),), MemberKind.STEPPED, 0)
    assert link.broken is not None
    site.greeted().close()


@pytest.mark.parametrize("blocks", [[BLOCKS], [-1], ["a"], 7, [True]])
def test_kv_of_blocks_that_do_not_exist_is_neither_read_nor_written(
    site: Site, blocks: Any
) -> None:
    link = site.greeted()
    with pytest.raises(MemberGoneError):
        link.ask(MemberKind.READ, {"blocks": blocks}, (), MemberKind.BLOCKS, 0)
    link = site.greeted()
    table = np.asarray([BLOCKS])
    with pytest.raises(MemberGoneError):
        step(link, [[0, 1, 1]], table, np.zeros((1, 8, 192), np.float32))
    site.greeted().close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 3,
        b"\x00" * 64,
        protocol.HEAD.pack(b"PDKV", 1, FrameKind.HELLO, 1 << 30),
        protocol.encode(FrameKind.HELLO, {"id": "p0", "to": "p0-m1", "blocks": 1 << 60}),
        protocol.encode(FrameKind.PULL, {"request": "r"}),
        HEAD.pack(b"PDMB", 1, MemberKind.STEP, 0, 2, 1 << 60, 0) + b"{}",
    ],
)
def test_bytes_of_another_protocol_cost_a_connection(site: Site, sent: bytes) -> None:
    leader = site.greeted()
    with socket.create_connection((site.host, site.port), 5) as foreign:
        foreign.sendall(sent)
        foreign.settimeout(20)
        while foreign.recv(4096):
            pass
    leader.ping()
    assert leader.broken is None


def test_a_corrupt_answer_is_not_used(site: Site) -> None:
    with socket.create_server((fresh_host(), 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    link = MemberLink(MemberStream(ours, "p0-m1"), site.shares[1])
    body = struct.pack("!f", 1.0)
    answer = HEAD.pack(b"PDMB", 1, MemberKind.BLOCKS, 0, 2, 4, 12345) + b"{}" + body

    def reply() -> None:
        theirs.recv(1 << 16)
        theirs.sendall(answer)

    threading.Thread(target=reply).start()
    with pytest.raises(MemberGoneError, match="corrupt"):
        link.ask(MemberKind.READ, {"blocks": [1]}, (), MemberKind.BLOCKS, 4)
    assert link.broken is not None
    theirs.close()


def test_members_of_an_instance_have_a_key_that_no_other_has() -> None:
    keys = {member_key("m", g, i) for g in ("a/x-0", "b/x-0") for i in ("x-0-p0-1", "x-0-p1-1")}
    assert len(keys) == 4
    trust = Trust("shared")
    assert [p.key for p in trust.member_proofs()] == ["shared"]
    grant = Grant("r", (digest("c"),), (digest("q"),), True, False, {}, (KEY,))
    assert Grant.from_json(grant.to_json()) == grant
    trust.take(grant, "control")
    assert [p.key for p in trust.member_proofs()] == [KEY], "the shared token opens nothing"
    assert "members" not in replace(grant, members=()).to_json()
