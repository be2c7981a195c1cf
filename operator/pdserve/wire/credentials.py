"""Credentials between operator, gateways and engines: forms, derivation, and the grant.

Three uses, three secrets: `control` (operator -> engine), `request` (gateway -> engine) and `kv`
(instance <-> instance). A list of values orders them: the first is sent, all are accepted, which
is what a rotation needs. docs/decisions/020 says who holds what. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.bounds import WireError

CAPABILITY = 1
"""In a link report: this engine reads grants and proves pair keys."""
DIGEST_PREFIX = "sha256:"
MAX_VALUES = 8
"""Values of one credential; a rotation needs two."""
MAX_PEERS = 4096
MAX_PUSH = 2 << 20
"""Bytes of a peer table and its grant."""
_HEX = frozenset("0123456789abcdef")


def digest(value: str) -> str:
    """`sha256:` and 64 hex digits of a credential: enough to check it, useless to send it."""
    return DIGEST_PREFIX + hashlib.sha256(value.encode()).hexdigest()


def fingerprint(value: str) -> str:
    """12 hex digits that name a credential in annotations and logs, and reveal nothing of it."""
    return hashlib.sha256(digest(value).encode()).hexdigest()[:12]


def values(text: str) -> tuple[str, ...]:
    """The credentials of a file or variable: one a line, blank lines skipped.

    At most 8 are read; more are left out. The first is the one to send.
    """
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line)[:MAX_VALUES]


def digests(given: Iterable[str]) -> frozenset[str]:
    """Digests of values; an entry that is one already (`sha256:...`) stays."""
    return frozenset(v if v.startswith(DIGEST_PREFIX) else digest(v) for v in given)


def accepted(authorization: str, known: Iterable[str]) -> bool:
    """Whether `Bearer <value>` carries a value whose digest is in `known`.

    `authorization` is the value of that header, "" where it is absent. All of `known` are compared,
    each in constant time, so the time tells nothing of a digest.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        return False
    found = digest(value.strip()).encode()
    same = False
    for entry in known:
        same |= hmac.compare_digest(found, entry.encode())
    return same


def pair_key(master: str, group: str, prefill: str, decode: str) -> str:
    """The KV key of one prefill and one decode of a group, in hex.

    `group` is `namespace/peer table's group`, so that equal pod names elsewhere give other keys.
    """
    message = "\x00".join(("pdserve-kv-pair", group, prefill, decode)).encode()
    return hmac.new(master.encode(), message, hashlib.sha256).hexdigest()


def member_key(master: str, group: str, instance: str) -> str:
    """What the members of one instance prove to each other, in hex; `group` as in `pair_key`."""
    message = "\x00".join(("pdserve-members", group, instance)).encode()
    return hmac.new(master.encode(), message, hashlib.sha256).hexdigest()


def control_token(master: str, namespace: str, pod: str) -> str:
    """What the operator sends one instance, 64 hex digits: of no use at another instance.

    `master` is the service's control secret; `pod` names the instance's first pod.
    """
    message = "\x00".join(("pdserve-control", namespace, pod)).encode()
    return hmac.new(master.encode(), message, hashlib.sha256).hexdigest()


def proxy_token(key: str, sender: str, receiver: str) -> str:
    """What one instance's proxy sends a peer's, 64 hex digits: of no use in any other direction.

    `key` is the pair's KV key; `sender` and `receiver` are instances by name.
    """
    message = "\x00".join(("pdserve-engine-proxy", sender, receiver)).encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def limits_token(request: str, receiver: str) -> str:
    """What a gateway sends another one with a report about limits, 64 hex digits.

    `request` is the request credential of the service, which cannot be found from it; `receiver`
    is the other gateway's id, and to others the token is of no use.
    """
    message = "\x00".join(("pdserve-limits", receiver)).encode()
    return hmac.new(request.encode(), message, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class PeerGrant:
    """How one peer is recognised.

    `keys`: pair keys, the first is used, all are accepted. `legacy`: it does not know pair keys,
    so the shared token stands for them; None: not known now, what was said before holds.
    """

    keys: tuple[str, ...] = field(repr=False)
    legacy: bool | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one instance gets of credentials, with its peer table.

    `control` and `request` are digests to accept. `required`: generation without a request
    credential is refused. `shared_token`: the token of older versions may still be used.
    `members`: keys that members of its own instance prove to each other; none where it has one.
    """

    revision: str
    """Names the state of the service's credentials; equal revisions were rotated equally far."""
    control: tuple[str, ...]
    request: tuple[str, ...]
    required: bool
    shared_token: bool
    peers: Mapping[str, PeerGrant]
    members: tuple[str, ...] = field(default=(), repr=False)

    def to_json(self) -> JsonObject:
        """Plain JSON value."""
        return {
            "revision": self.revision,
            "control": list(self.control),
            "request": list(self.request),
            "required": self.required,
            "sharedToken": self.shared_token,
            "peers": {
                name: {"keys": list(p.keys)} | ({} if p.legacy is None else {"legacy": p.legacy})
                for name, p in self.peers.items()
            },
            **({"members": list(self.members)} if self.members else {}),
        }

    @staticmethod
    def from_json(value: object) -> Grant:
        """Parse `to_json`'s value.

        Raises:
            WireError: a field is missing, has another type, or a list is too long.
        """
        if not isinstance(value, Mapping):
            raise WireError(f"credentials: an object is required, not {type(value).__name__}")
        peers = value.get("peers", {})
        if not isinstance(peers, Mapping) or len(peers) > MAX_PEERS:
            raise WireError(f"credentials.peers: an object of at most {MAX_PEERS} is required")
        return Grant(
            revision=_text(value.get("revision"), "revision"),
            control=_digests(value, "control"),
            request=_digests(value, "request"),
            required=_flag(value, "required"),
            shared_token=_flag(value, "sharedToken"),
            peers={_text(name, "peers"): _peer(str(name), p) for name, p in peers.items()},
            members=_keys(value, "members", "members") if "members" in value else (),
        )


def _peer(name: str, value: object) -> PeerGrant:
    path = f"peers.{name}"
    if not isinstance(value, Mapping):
        raise WireError(f"credentials.{path}: an object is required")
    keys = _keys(value, "keys", path)
    legacy = value.get("legacy")
    if legacy is not None and not isinstance(legacy, bool):
        raise WireError(f"credentials.{path}.legacy: true or false is required")
    return PeerGrant(keys, legacy)


def _keys(value: JsonMap, name: str, path: str) -> tuple[str, ...]:
    keys = _texts(value, name, path)
    for key in keys:
        if len(key) != 64 or not _HEX.issuperset(key):
            raise WireError(f"credentials.{path}: keys of 64 hex digits each are required")
    return keys


def _digests(value: JsonMap, name: str) -> tuple[str, ...]:
    found = _texts(value, name, name)
    for entry in found:
        digits = entry.removeprefix(DIGEST_PREFIX)
        if digits == entry or len(digits) != 64 or not _HEX.issuperset(digits):
            raise WireError(f"credentials.{name}: `{DIGEST_PREFIX}` and 64 hex digits each")
    return found


def _texts(value: JsonMap, name: str, path: str) -> tuple[str, ...]:
    found = value.get(name)
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_VALUES:
        raise WireError(f"credentials.{path}: a list of 1 to {MAX_VALUES} is required")
    return tuple(_text(entry, path) for entry in found)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise WireError(f"credentials.{path}: text of 1 to 256 characters is required")
    return value


def _flag(value: JsonMap, name: str) -> bool:
    found = value.get(name)
    if not isinstance(found, bool):
        raise WireError(f"credentials.{name}: true or false is required")
    return found
