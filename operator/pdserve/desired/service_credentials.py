"""One PDService's credentials: their stored form, what each process is given, their rotation. Pure.

`tokens` reads and writes the Secrets, `rotation` observes how far each process is. A rotation goes

    settled  (a)         every process knows a
    spread   (a, b)      a is sent, both are accepted; ends when every linked instance took it
    switch   (b, a)      b is sent, both are accepted; ends when instances and gateways took it
    settled  (b)

for control, request and KV together (docs/decisions/020).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, cast, get_args

from pdserve.frozen import Memo
from pdserve.groups.types import ConditionState
from pdserve.wire.credentials import (
    Grant,
    PeerGrant,
    control_token,
    digest,
    fingerprint,
    member_key,
    pair_key,
)
from pdserve.wire.names import instance_name
from pdserve.wire.peers import PeerTable

Step = Literal["settled", "spread", "switch"]
CONDITION: Final = "CredentialsRotated"
USES: Final = ("control", "request", "kv")
VALUE_BYTES: Final = 32
MAX_VALUE: Final = 4096
MOST_SHOWN: Final = 5
"""Names in a condition's message."""


class BadSecret(Exception):  # noqa: N818 - what a user stored, not a defect
    """A Secret's content cannot be used; the message says why, never the content."""


@dataclass(frozen=True)
class ServiceCredentials:
    """All credentials of one service. The first of a list is sent, all are accepted."""

    control: tuple[str, ...] = field(repr=False)
    request: tuple[str, ...] = field(repr=False)
    kv: tuple[str, ...] = field(repr=False)
    step: Step = "settled"
    rotation: str = ""
    """Fingerprint of the newest `pdserve.io/rotate` that was carried out or begun."""
    shared: str = field(default="", repr=False)
    """The token of older operators and engines; empty: none (any more)."""

    @cached_property
    def revision(self) -> str:
        """Differs for every state that engines must receive."""
        parts = (*self.control, "", *self.request, "", *self.kv, self.step, self.shared)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def gateway_fingerprint(self) -> str:
        """Names what gateways send."""
        return fingerprint(self.request[0])


def fresh(random_bytes: Callable[[int], bytes], rotation: str = "") -> ServiceCredentials:
    """The first credentials of a service."""
    control, request, kv = ((random_bytes(VALUE_BYTES).hex(),) for _ in USES)
    return ServiceCredentials(control, request, kv, rotation=rotation)


# --- stored form --------------------------------------------------------------------------------


def to_data(held: ServiceCredentials) -> dict[str, str]:
    """`data` of the Secret that the operator alone reads."""
    texts = {use: "\n".join(getattr(held, use)) for use in USES}
    return encode({**texts, "step": held.step, "rotation": held.rotation})


def from_data(name: str, data: object) -> ServiceCredentials:
    """`to_data`'s value, without the shared token.

    Raises:
        BadSecret: a key is missing or its text is wrong; the message names the key.
    """
    step = text_of(name, data, "step", ("settled",))[0]
    if step not in get_args(Step):
        raise BadSecret(f"Secret {name}: key 'step' is none of {', '.join(get_args(Step))}")
    control, request, kv = (text_of(name, data, use) for use in USES)
    rotation = text_of(name, data, "rotation", ("",))[0]
    return ServiceCredentials(control, request, kv, cast(Step, step), rotation)


def encode(texts: Mapping[str, str]) -> dict[str, str]:
    """Texts as the `data` of a Secret."""
    return {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}


def text_of(
    name: str, data: object, key: str, default: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The lines of one key of a Secret (1 or 2, each of what a header can carry).

    `default` stands where the key is absent or empty.

    Raises:
        BadSecret: the key is missing and has no default, or it holds something else.
    """
    value = data.get(key) if isinstance(data, Mapping) else None
    if value in (None, "") and default is not None:
        return default
    try:
        lines = base64.b64decode(str(value), validate=True).decode("ascii").split("\n")
    except (ValueError, TypeError) as error:
        raise BadSecret(f"Secret {name}: key {key!r} is missing or not ASCII text") from error
    if len(lines) > 2 or not all(0 < len(v) <= MAX_VALUE and v.isprintable() for v in lines):
        raise BadSecret(
            f"Secret {name}: key {key!r} is not one or two lines of 1 to {MAX_VALUE} characters"
        )
    return tuple(lines)


# --- what others are given ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms the instances of a group are granted credentials.

    `revision` is `ServiceCredentials.revision`; `required`: generation needs a request credential;
    `legacy`: peers that read no grants; `known`: peers that said whether they do.
    """

    revision: str
    required: bool
    legacy: frozenset[str]
    known: frozenset[str] = field(compare=False)


def control_tokens(held: ServiceCredentials, namespace: str, pod: str) -> tuple[str, ...]:
    """What to send an instance, in the order to try; the last are for older engines."""
    own = tuple(control_token(master, namespace, pod) for master in held.control)
    return (*own, held.shared) if held.shared else own


def control_digests(held: ServiceCredentials, namespace: str, pod: str) -> tuple[str, ...]:
    """What the instance may know of them."""
    return _digests.of(
        lambda: tuple(digest(control_token(master, namespace, pod)) for master in held.control),
        held, by=(namespace, pod),
    )  # fmt: skip


_digests: Memo[tuple[str, ...]] = Memo()


def grant_of(
    held: ServiceCredentials, namespace: str, pod: str, table: PeerTable, terms: Terms
) -> Grant:
    """The grant that goes to `pod` with its instance's peer table.

    Only the leader of an instance links to peers; each of its members gets the instance's keys.
    """
    group = f"{namespace}/{table.group}"
    instance = instance_name(pod)
    me = table.peer(instance)
    several = me is not None and len(me.nodes) > 1
    peers = {}
    for peer in table.opposite(pod) if instance == pod else ():
        pair = (pod, peer.id) if me is not None and me.role == "prefill" else (peer.id, pod)
        keys = tuple(pair_key(master, group, *pair) for master in held.kv)
        legacy = peer.id in terms.legacy
        peers[peer.id] = PeerGrant(keys, legacy if legacy or peer.id in terms.known else None)
    return Grant(
        revision=held.revision,
        control=control_digests(held, namespace, pod),
        request=tuple(digest(value) for value in held.request),
        required=terms.required,
        shared_token=bool(held.shared),
        peers=peers,
        members=tuple(member_key(m, group, instance) for m in held.kv) if several else (),
    )


# --- rotation -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """Who is not there yet, by name, sorted."""

    engines: tuple[str, ...]
    """Linked instances that have not taken the present revision."""
    gateways: tuple[str, ...]
    """Gateway pods that were made with another request credential than the present one."""
    legacy: tuple[str, ...]
    """Instances and gateways that know only the shared token, or have not said that they do not."""


def advance(
    held: ServiceCredentials, asked: str, seen: Seen, random_bytes: Callable[[int], bytes]
) -> ServiceCredentials | None:
    """The next state, or None while an instance or gateway is waited for, or nothing is to do.

    `asked` is the fingerprint of the wanted rotation, empty where none is.
    """
    if held.step == "settled":
        if asked and asked != held.rotation:
            new = fresh(random_bytes)
            return dataclasses.replace(
                held,
                control=(*held.control[:1], *new.control),
                request=(*held.request[:1], *new.request),
                kv=(*held.kv[:1], *new.kv),
                step="spread",
                rotation=asked,
            )
        if held.shared and held.rotation and not seen.legacy:
            return dataclasses.replace(held, shared="")
        return None
    if seen.engines:
        return None
    if held.step == "spread":
        return dataclasses.replace(
            held,
            control=held.control[::-1],
            request=held.request[::-1],
            kv=held.kv[::-1],
            step="switch",
        )
    if seen.gateways:
        return None
    return dataclasses.replace(
        held,
        control=held.control[:1],
        request=held.request[:1],
        kv=held.kv[:1],
        step="settled",
    )


def told(held: ServiceCredentials, asked: str, seen: Seen) -> ConditionState | None:
    """Condition CredentialsRotated; None where no rotation was ever asked for."""
    if held.step == "spread":
        return _condition("False", "Spreading", f"step 1 of 3: {_waits(seen.engines)}")
    if held.step == "switch":
        late = (*seen.engines, *seen.gateways)
        return _condition("False", "Switching", f"step 2 of 3: {_waits(late)}")
    if not asked:
        return None
    if held.shared:
        message = f"the token shared with older versions stays: {_waits(seen.legacy)}"
        return _condition("False", "OldInstances", message)
    message = "only the credentials of the newest rotation are accepted"
    return _condition("True", "Rotated", message)


def _condition(status: Literal["True", "False"], reason: str, message: str) -> ConditionState:
    return ConditionState(CONDITION, status, reason, message)


def _waits(names: tuple[str, ...]) -> str:
    if not names:
        return "about to go on"
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return f"waiting for {', '.join(names[:MOST_SHOWN])}{more}"
