"""KV connections are proved per instance: between real sockets, and between real engines.

What an attacker may have: a gateway's request credential, a recording of another connection, the
pair key of another instance, the token of an older version. None of them gets KV.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.engines import Client, EngineProcess, Group, until
from tests.unit.refengine.test_transport import DATA, Pair, Store

from pdserve.engines.credentials import Credential
from pdserve.engines.trust import Proof, Trust, shared_proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.kv_transport import Identity, TransportError
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.wire import calls
from pdserve.wire.credentials import Grant, PeerGrant, digest, pair_key

MASTER, NEXT = "master", "next master"
GROUP = "ns/g-0"


def grants(
    me: str, prefills: list[str], decodes: list[str], *masters: str, legacy: tuple[str, ...] = ()
) -> Grant:
    """What the operator pushes to `me`."""
    others = decodes if me in prefills else prefills
    peers = {}
    for other in others:
        pair = (me, other) if me in prefills else (other, me)
        keys = tuple(pair_key(m, GROUP, *pair) for m in masters or (MASTER,))
        peers[other] = PeerGrant(keys, legacy=other in legacy)
    shared = bool(legacy)
    return Grant("r", (digest("op"),), (digest("gw"),), True, shared, peers)


def trusting(me: str, *masters: str, legacy: tuple[str, ...] = ()) -> Trust:
    trust = Trust("shared", Credential("op"))
    trust.take(grants(me, ["p0"], ["d0", "d1"], *masters, legacy=legacy), "control")
    return trust


def pair(prefill: Trust, decode: Trust, name: str = "d0") -> Pair:
    receiver = Identity(name, decode, "model-1", "bits")
    return Pair(Store(), receiver, sender=Identity("p0", prefill, "model-1", "bits"))


async def test_equal_pair_keys_link_and_pull() -> None:
    async with pair(trusting("p0"), trusting("d0")) as made:
        assert await made.pull() == DATA


@pytest.mark.parametrize(
    "decode",
    [
        Trust("gw"),
        Trust("shared"),
        trusting("d0", "another master"),
        trusting("d1"),
        Trust("x", Credential("op")),
    ],
    ids=["a gateway's credential", "the old token", "another service", "another decode", "nothing"],
)
async def test_a_sender_that_cannot_prove_the_pair_key_of_d0_gets_nothing(decode: Trust) -> None:
    async with pair(trusting("p0"), decode) as made:
        with pytest.raises(TransportError):
            await made.pull()
        assert made.store.events == []


async def test_a_decode_refuses_a_prefill_that_proves_only_the_old_token() -> None:
    async with pair(Trust("shared"), trusting("d0")) as made:
        with pytest.raises(TransportError):
            await made.pull()


async def test_a_peer_marked_legacy_links_by_the_shared_token_in_both_directions() -> None:
    async with pair(trusting("p0", legacy=("d0",)), Trust("shared")) as made:
        assert await made.pull() == DATA
    async with pair(Trust("shared"), trusting("d0", legacy=("p0",))) as made:
        assert await made.pull() == DATA


async def test_a_rotation_in_three_steps_never_breaks_a_pull() -> None:
    """Each end moves on its own; the other may be a step ahead or behind."""
    steps = ((MASTER,), (MASTER, NEXT), (NEXT, MASTER), (NEXT,))
    prefill, decode = trusting("p0"), trusting("d0")
    async with pair(prefill, decode) as made:
        prefill.changed = made.sender.keys_changed
        decode.changed = made.receiver.keys_changed
        for step in steps[1:]:
            for side, trust in (("p0", prefill), ("d0", decode)):
                trust.take(grants(side, ["p0"], ["d0", "d1"], *step), "control")
                assert await made.pull() == DATA, (step, side)
        assert prefill.proofs_from("d0") == (Proof(pair_key(NEXT, GROUP, "p0", "d0")),)


async def test_connections_verified_by_a_withdrawn_key_end() -> None:
    prefill = trusting("p0")
    async with pair(prefill, trusting("d0")) as made:
        prefill.changed = made.sender.keys_changed
        link = await made.receiver.link(made.address)
        prefill.take(grants("p0", ["p0"], ["d0"], NEXT), "control")
        async with asyncio.timeout(60):
            assert await link.lost()
        with pytest.raises(TransportError):
            await made.pull()


async def test_a_peer_that_left_the_table_pulls_nothing_over_its_old_connection() -> None:
    async with pair(trusting("p0"), trusting("d0")) as made:
        assert await made.pull() == DATA
        made.store.admits = lambda peer: f"{peer} left"  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="d0 left"):
            await made.pull()


# --- by hand, against real engines -----------------------------------------------------------


class Raw:
    """A KV connection that says what it likes, and records what passed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @staticmethod
    async def to(engine: EngineProcess) -> tuple[Raw, dict[str, Any]]:
        raw = Raw(*await asyncio.open_connection(engine.host, 5600))
        kind, challenge = await raw.read()
        assert kind is FrameKind.CHALLENGE
        return raw, challenge

    async def read(self) -> tuple[FrameKind, dict[str, Any]]:
        async with asyncio.timeout(60):
            head = await self.reader.readexactly(protocol.HEAD.size)
            body = await self.reader.readexactly(protocol.HEAD.unpack(head)[3])
        found = protocol.decode(memoryview(head + body))
        assert found is not None
        return found[0], found[1]

    async def say(self, kind: FrameKind, body: dict[str, Any]) -> tuple[FrameKind, dict[str, Any]]:
        self.writer.write(protocol.encode(kind, body))
        return await self.read()


def hello(proof: Proof, me: str, to: str, nonce: str, model: str) -> dict[str, Any]:
    mine = secrets.token_hex(16)
    mac = protocol.mac(proof, "client", server=to, client=me, nonces=(nonce, mine), model=model)
    body = {"id": me, "to": to, "nonce": mine, "model": model, "numerics": "x", "mac": mac}
    return body | ({"key": proof.name} if proof.name else {})


@pytest.fixture
async def modern(client: Client, start: Callable[..., Any]) -> Group:
    """Two linked engines that got their keys by push, without any shared token."""
    env = {"PDSERVE_CONTROL_TOKEN": digest("op")}
    prefill = await start(EngineProcess("prefill", token="", env=env, name="p0"))
    decode = await start(EngineProcess("decode", token="", env=env, name="d0"))
    group = Group(client, [prefill], [decode], control="op", request="gw")
    group.grants = lambda me: grants(me, ["p0"], ["d0"])
    await group.push()
    return group


BODY = {"model": "reference", "prompt": "one two three", "max_tokens": 4, "temperature": 0}


async def test_real_engines_serve_by_grants_and_refuse_every_other_way(modern: Group) -> None:
    client, (prefill,), (decode,) = modern.client, modern.prefills, modern.decodes
    report = (await client.call("GET", prefill.url + calls.PATH_LINKS, token="op")).body
    assert (report["credentials"], report["grant"]) == (1, "r")
    held = await modern.prefill("/v1/completions", BODY)
    params = held.body[calls.PARAM_KV]
    model = (await client.call("GET", prefill.url + calls.PATH_INFO)).body["fingerprint"]
    true_key = Proof(pair_key(MASTER, GROUP, "p0", "d0"))

    async def attempt(proof: Proof, me: str = "d0") -> tuple[FrameKind, dict[str, Any]]:
        raw, challenge = await Raw.to(prefill)
        return await raw.say(FrameKind.HELLO, hello(proof, me, "p0", challenge["nonce"], model))

    for stolen in ("gw", "op", digest("op"), "", pair_key(MASTER, GROUP, "p0", "d1")):
        for proof in (Proof(stolen), shared_proof(stolen)):
            kind, _ = await attempt(proof)
            assert kind is FrameKind.REFUSED, proof
    assert (await attempt(true_key, me="d1"))[0] is FrameKind.REFUSED, "another id"

    raw, challenge = await Raw.to(prefill)
    recorded = hello(true_key, "d0", "p0", challenge["nonce"], model)
    assert (await raw.say(FrameKind.HELLO, recorded))[0] is FrameKind.WELCOME
    again, _ = await Raw.to(prefill)
    assert (await again.say(FrameKind.HELLO, recorded))[0] is FrameKind.REFUSED, "a recording"
    before, _ = await Raw.to(prefill)
    before.writer.write(protocol.encode(FrameKind.PULL, {"request": params["remote_request_id"]}))
    with pytest.raises(asyncio.IncompleteReadError):
        await before.read()

    # No decode took it: the one it is for gets the KV, and the answer.
    answer = await modern.decode("/v1/completions", BODY, params)
    assert answer.status == 200, answer.body
    assert answer.body["usage"]["completion_tokens"] == 4

    for url, method in (
        (calls.PATH_PEERS, "PUT"),
        (calls.PATH_LINKS, "GET"),
        (calls.PATH_DRAIN, "POST"),
    ):
        for wrong in ("gw", digest("op"), None):
            reply = await client.call(method, decode.url + url, {}, token=wrong)
            assert reply.status == 401, (url, wrong)
    for url in (calls.PATH_CHAT, calls.PATH_COMPLETIONS, calls.PATH_RELEASE):
        for wrong in ("op", digest("gw"), None):
            reply = await client.call("POST", prefill.url + url, BODY, token=wrong)
            assert reply.status == 401, (url, wrong)


async def test_an_engine_of_older_kind_links_with_a_new_one_while_it_is_marked(
    client: Client, start: Callable[..., Any]
) -> None:
    """`d0` is only ever given tables, as an old engine would read them."""
    env = {"PDSERVE_CONTROL_TOKEN": digest("op")}
    prefill = await start(EngineProcess("prefill", env=env, name="p0"))
    decode = await start(EngineProcess("decode", name="d0"))
    group = Group(client, [prefill], [decode], version=1)
    table = group.table(1).to_json()
    trusted = {"credentials": grants("p0", ["p0"], ["d0"], legacy=("d0",)).to_json()}
    for engine, body, token in ((prefill, table | trusted, "op"), (decode, table, "test-token")):
        reply = await client.call("PUT", engine.url + calls.PATH_PEERS, body, token=token)
        assert reply.status == 200

    async def linked() -> bool:
        ups = []
        for engine, token in ((prefill, "op"), (decode, "test-token")):
            url = engine.url + calls.PATH_LINKS
            ups.append((await client.call("GET", url, token=token)).body["up"])
        return ups == [["d0"], ["p0"]]

    await until(linked, "old and new linked", 60)
    group.request = "gw"
    assert (await group.generate("/v1/completions", BODY)).status == 200


async def test_all_secrets_of_real_engines_are_rotated_under_load(modern: Group) -> None:
    """The operator's three steps, each told to one engine after the other, beside requests."""
    steps = (
        ("op", "gw", (MASTER, NEXT), ("op", "op2"), ("gw", "gw2")),
        ("op2", "gw2", (NEXT, MASTER), ("op2", "op"), ("gw2", "gw")),
        ("op2", "gw2", (NEXT,), ("op2",), ("gw2",)),
    )
    stop, answers = asyncio.Event(), []

    async def load() -> None:
        while not stop.is_set():
            reply = await modern.generate("/v1/completions", BODY)
            answers.append((reply.status, reply.body))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(load())
        for control, request, masters, controls, requests in steps:

            def grant(
                me: str,
                masters: tuple[str, ...] = masters,
                controls: tuple[str, ...] = controls,
                requests: tuple[str, ...] = requests,
            ) -> Grant:
                peers = grants(me, ["p0"], ["d0"], *masters).peers
                return Grant(
                    "r", tuple(map(digest, controls)), tuple(map(digest, requests)), True, False,
                    peers,
                )  # fmt: skip

            modern.control, modern.grants = control, grant
            await modern.tell()
            modern.request = request
            before = len(answers)

            async def served(before: int = before) -> bool:
                return len(answers) >= before + 12

            await until(served, "requests in this step", 60)
        stop.set()
    assert {status for status, _ in answers} == {200}, answers
    # The last step took the old ones away, apart from what the process was started with.
    decode = modern.decodes[0]
    old = await modern.client.call("POST", decode.url + calls.PATH_COMPLETIONS, BODY, token="gw")
    assert old.status == 401
