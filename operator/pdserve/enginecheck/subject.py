"""What is checked: instances of one engine type, and what the checks have learned of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from pdserve.enginecheck.probe import Probe, ProbeAnswer
from pdserve.engines import registry
from pdserve.engines.control import ControlRequest, EngineControl
from pdserve.engines.flow import EngineFlow
from pdserve.engines.pod_parts import InstanceFacts, PodParts
from pdserve.terms import Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.credentials import Grant, PeerGrant, digest, pair_key
from pdserve.wire.peers import Peer, PeerTable
from pdserve.wire.routes import RouteInstance

PROMPT: Final = "Say in one sentence what a river is."
LONG: Final = 40
"""Times the prompt is repeated where its prefill is to last."""
GROUP: Final = "engine-check"
MOST_SLOTS: Final = 64
"""An instance with more is not filled by a check."""
_run = os.urandom(4).hex()
_numbers = itertools.count(1)


class UnkeptError(Exception):
    """A rule of the contract is not kept; the message says what to do."""


class NotCheckedError(Exception):
    """A rule cannot be looked at here; the message says why."""


@dataclass(slots=True)
class CheckedInstance:
    """One instance. `transfer` is `host:port` of its KV port."""

    name: str
    role: Role
    transfer: str
    probe: Probe
    version: int = 0
    """Of the newest peer table that it was given."""
    total: int = 0
    """Slots, as its hints say; 0: not known yet."""

    def route(self) -> RouteInstance:
        """The instance as a gateway sees it."""
        return RouteInstance(self.name, self.role, self.probe.url, max(1, self.total))

    def peer(self) -> Peer:
        """The instance as its peers see it."""
        return Peer(self.name, self.role, self.probe.url, self.transfer, "check")


@dataclass(slots=True)
class CheckSubject:
    """Everything that checks use; the first prefill and decode make the pair."""

    type_name: str
    targets: tuple[CheckedInstance, ...]
    model: str = ""
    extra: JsonMap = field(default_factory=dict)
    """Fields that every request has beside ours."""
    tokens: int = 512
    """Of a reply that is to last a while."""
    take_over: bool = False
    """Instances that have a peer table of another group get one of ours."""
    prefill_reply: bytes = b""
    """A whole reply of a prefill."""

    @property
    def flow(self) -> EngineFlow:
        """The request path of the type."""
        return registry.flow(self.type_name)

    @property
    def control(self) -> EngineControl:
        """The control paths of the type."""
        return registry.control(self.type_name)

    def parts(self, target: CheckedInstance) -> PodParts:
        """What the type's pods have for an instance of that role: its paths."""
        facts = InstanceFacts(target.role, max(1, target.total), 1, self.model or "m", "")
        return registry.pod(self.type_name).parts(facts)

    def of(self, role: Role) -> CheckedInstance | None:
        """The first instance of a role."""
        return next((t for t in self.targets if t.role == role), None)

    def peers(self, target: CheckedInstance) -> frozenset[str]:
        """Names of the instances of the other role."""
        return frozenset(t.name for t in self.targets if t.role != target.role)

    def push(self, target: CheckedInstance, version: int) -> ControlRequest:
        """A peer table of all instances for one of them, with the credentials that count."""
        table = PeerTable(GROUP, version, tuple(t.peer() for t in self.targets)).to_json()
        return self.control.put_peers({**table, "credentials": self.grant(target).to_json()})

    def grant(self, target: CheckedInstance) -> Grant:
        """What one instance gets of credentials: ours, and the keys of its pairs."""
        token = target.probe.token
        known = (digest(token),) if token else ()
        peers = {}
        for peer in self.peers(target):
            pair = (target.name, peer) if target.role == "prefill" else (peer, target.name)
            peers[peer] = PeerGrant((pair_key(token, GROUP, *pair),))
        return Grant("engine-check", known, known, bool(token), True, peers)

    def body(
        self, tokens: int, *, chat: bool = False, stream: bool = False, long: bool = False
    ) -> JsonObject:
        """What a client asks; `long`: with some hundred words."""
        text = PROMPT * LONG if long else PROMPT
        asked: JsonObject = {"model": self.model, "max_tokens": tokens, "temperature": 0}
        asked |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        return {**asked, **({"stream": True} if stream else {}), **self.extra}


def fresh_id() -> str:
    """A request id that no attempt had before."""
    return f"check-{_run}-{next(_numbers)}"


async def controlled(
    target: CheckedInstance, request: ControlRequest, *, token: bool = True
) -> ProbeAnswer:
    """The answer to a control request.

    Raises:
        ProbeError: there is none.
    """
    body = None if request.body is None else orjson.dumps(request.body)
    headers: Mapping[bytes, bytes] = {}
    if body is None and request.method != "GET":
        body = b""
    return await target.probe.call(request.method, request.path, body, headers, token=token)
