"""How a leader and another member prove to each other that they are of one instance.

The frames are those of the KV transport (`kv.protocol`): CHALLENGE, HELLO, WELCOME. The member
listens. The key is the instance's own, which the operator grants to its members alone; nothing of
it travels. HELLO says in `members` and `blocks` how the model and its KV memory are shared, so
that both ends compute the same layers of the same model in the same blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pdserve.engines.trust import Proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.kv_transport import HANDSHAKE_SECONDS, TransportError
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.members.messages import MemberGoneError, MemberStream
from pdserve.refengine.model.layer_share import LayerShare
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

Proofs = Callable[[], tuple[Proof, ...]]
"""The keys of the instance; the first is used, all are accepted."""
MAX_BLOCKS = 1 << 24


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    """Who this process is among the members of its instance."""

    instance: str
    member: int
    members: int
    model: str
    """Fingerprint of the weights."""
    numerics: str

    @property
    def id(self) -> str:
        """Its name in handshakes: that of its pod."""
        return names.member_name(self.instance, self.member)

    def other(self, member: int) -> str:
        """The name of another member."""
        return names.member_name(self.instance, member)


def greet(
    stream: MemberStream, me: MemberIdentity, member: int, blocks: int, share: LayerShare,
    proofs: Proofs,
) -> str:  # fmt: skip
    """The leader's side: returns the numerics of the member, which computes `share`.

    Raises:
        MemberGoneError: it does not answer, refuses, or is another one.
    """
    other, known = me.other(member), proofs()
    if not known:
        raise MemberGoneError(f"{other}: no key of {me.instance} was granted yet")
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    challenge = _frame(stream, FrameKind.CHALLENGE, deadline)
    if challenge.get("id") != other:
        raise MemberGoneError(f"{other}: {challenge.get('id')!r} answers at its address")
    nonces = (str(challenge.get("nonce")), protocol.new_nonce())
    proof = known[0]
    hello: JsonObject = {
        "id": me.id, "to": other, "nonce": nonces[1], "model": me.model,
        "members": me.members, "blocks": blocks,
        "mac": _mac(proof, "leader", other, me.id, nonces, me),
    }  # fmt: skip
    if proof.name is not None:
        hello["key"] = proof.name
    stream.write(protocol.encode(FrameKind.HELLO, hello))
    welcome = _frame(stream, FrameKind.WELCOME, deadline)
    if not protocol.same(_mac(proof, "member", other, me.id, nonces, me), welcome.get("mac")):
        raise MemberGoneError(f"{other}: it does not know the key")
    if welcome.get("layers") != [share.first, share.end]:
        raise MemberGoneError(f"{other}: it computes layers {welcome.get('layers')}, not {share}")
    return str(welcome.get("numerics"))


def receive_leader(
    stream: MemberStream, me: MemberIdentity, share: LayerShare, proofs: Proofs
) -> int:
    """The member's side: returns how many KV blocks the leader has.

    Raises:
        MemberGoneError: who connects is not the leader of this instance; the answer said why.
    """
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    nonce = protocol.new_nonce()
    stream.write(protocol.encode(FrameKind.CHALLENGE, {"id": me.id, "nonce": nonce}))
    hello = _frame(stream, FrameKind.HELLO, deadline)
    nonces = (nonce, str(hello.get("nonce")))
    proof = next((p for p in proofs() if p.name == hello.get("key")), None)
    blocks = hello.get("blocks")
    why = None
    if proof is None:
        why = f"no such key is known to {me.id}"
    elif not protocol.same(_mac(proof, "leader", me.id, me.other(0), nonces, me), hello.get("mac")):
        why = "wrong key, or another model"
    elif hello.get("id") != me.other(0) or hello.get("to") != me.id:
        why = f"this is {me.id}, whose leader is {me.other(0)}"
    elif hello.get("members") != me.members:
        why = f"{me.members} members here, {hello.get('members')} there"
    elif type(blocks) is not int or not 1 <= blocks <= MAX_BLOCKS:
        why = f"{blocks!r} KV blocks"
    if why is not None or proof is None or type(blocks) is not int:
        stream.write(protocol.encode(FrameKind.REFUSED, {"reason": why}))
        raise MemberGoneError(f"{stream.peer}: refused: {why}")
    welcome = {
        "layers": [share.first, share.end],
        "numerics": me.numerics,
        "mac": _mac(proof, "member", me.id, me.other(0), nonces, me),
    }
    stream.write(protocol.encode(FrameKind.WELCOME, welcome))
    return blocks


def _frame(stream: MemberStream, kind: FrameKind, deadline: float) -> JsonMap:
    head = stream.exactly(protocol.HEAD.size, deadline).tobytes()
    size = protocol.HEAD.unpack(head)[3]
    body = b"" if size > protocol.MAX_FRAME else stream.exactly(size, deadline).tobytes()
    try:
        found = protocol.decode(memoryview(head + body))
    except TransportError as error:
        raise MemberGoneError(f"{stream.peer}: {error}") from error
    if found is None:
        raise MemberGoneError(f"{stream.peer}: half a frame")
    if found[0] is FrameKind.REFUSED:
        raise MemberGoneError(f"{stream.peer} refused: {str(found[1].get('reason'))[:200]}")
    if found[0] is not kind:
        raise MemberGoneError(f"{stream.peer}: unexpected {found[0].name}")
    return found[1]


def _mac(
    proof: Proof, side: str, server: str, client: str, nonces: tuple[str, str], me: MemberIdentity
) -> str:
    return protocol.mac(
        proof, f"instance-{side}", server=server, client=client, nonces=nonces, model=me.model
    )
