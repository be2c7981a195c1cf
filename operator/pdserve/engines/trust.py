"""Which credentials this instance accepts: for control, requests and KV connections.

It starts with the process's own credentials (`EngineConfig`); each push of a peer table may carry
a grant that adds to them (`wire.credentials`). A table without a grant that was pushed with the
shared token comes from an operator of an older version: then the instance is `relaxed`, which
means that it accepts what engines of that version accept. Neighbours: HTTP handlers ask it for
every request, KV transports for every handshake; docs/decisions/020 gives the reasons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pdserve.engines.credentials import Credential
from pdserve.http1.errors import ApiError
from pdserve.wire.credentials import Grant, PeerGrant, accepted, digest, fingerprint

Sender = Literal["control", "shared"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What an end of a connection proves to know."""

    key: str = field(repr=False)
    scheme: Literal["pair", "1"] = "pair"

    @property
    def name(self) -> str | None:
        """Field `key` of HELLO; None where the scheme names none."""
        return fingerprint(self.key) if self.scheme == "pair" else None


def shared_proof(token: str) -> Proof:
    """The proof of older engines: the token of all instances of the service."""
    return Proof(token, "1")


class Trust:
    """The credentials that count now."""

    def __init__(
        self,
        shared: str,
        control: Credential | None = None,
        request: Credential | None = None,
        kv_key: str = "",
    ) -> None:
        """`shared` is PDSERVE_TOKEN; `kv_key` stands for it between instances where given."""
        control, request = control or Credential(), request or Credential()
        self._control, self._request = control, request
        self._shared = frozenset((digest(shared),)) if shared else frozenset()
        self._kv = kv_key or shared
        self._open = not shared and not control.configured and not request.configured
        self._grant: Grant | None = None
        self._peers: dict[str, PeerGrant] = {}
        self._relaxed = False
        self._pair_refused: set[str] = set()
        self._granted_over: frozenset[str] = frozenset()
        """The process's own control credentials when the newest grant replaced them."""
        self.changed: Callable[[], None] = lambda: None
        """Called after every change of the keys."""

    @property
    def revision(self) -> str:
        """Of the newest grant; empty before the first, and after an old operator took over."""
        return "" if self._grant is None or self._relaxed else self._grant.revision

    # --- changes ---------------------------------------------------------------------------

    def take(self, grant: Grant | None, sender: Sender) -> None:
        """What a push of a peer table by `sender` says about credentials."""
        if grant is None:
            # A control credential is a new operator's: it alone cannot bring the old ways back.
            self._relaxed = self._relaxed or (sender == "shared" and self._grant is not None)
            return
        self._peers = {
            name: dataclasses.replace(peer, legacy=self._legacy(name))
            if peer.legacy is None
            else peer
            for name, peer in grant.peers.items()
        }
        self._grant = grant
        self._granted_over = self._control.digests
        self._relaxed = False
        self._pair_refused.clear()
        self.changed()

    def pair_refused(self, peer: str) -> None:
        """A handshake with `peer` failed: it may have started anew without its pair keys."""
        if self._relaxed:
            self._pair_refused.add(peer)

    # --- requests --------------------------------------------------------------------------

    def controls(self, authorization: str) -> Sender:
        """Who sends a control request, by its header Authorization.

        Raises:
            ApiError: 401, no credential for control is in it.
        """
        if self._open:
            return "control"
        if accepted(authorization, self._controls):
            return "control"
        if self._shared_counts and accepted(authorization, self._shared):
            return "shared"
        raise _refusal("the operator's control credential is required")

    def check_generation(self, authorization: str) -> None:
        """Check that the sender may generate here.

        Raises:
            ApiError: 401, it may not.
        """
        if self._needs_request and not accepted(authorization, self._requests):
            raise _refusal("a gateway's request credential is required")

    def check_release(self, authorization: str) -> None:
        """Check that the sender may release KV here.

        Raises:
            ApiError: 401, it may not.
        """
        shared = self._shared if self._shared_counts else ()
        if not self._open and not accepted(authorization, (*self._requests, *shared)):
            raise _refusal("a gateway's request credential is required")

    @property
    def _controls(self) -> frozenset[str]:
        """The granted ones; and the process's own, where its file changed after the grant: so an
        operator that lost its secrets finds its way back.
        """
        own = self._control.digests
        if self._grant is None:
            return own
        granted = frozenset(self._grant.control)
        return granted if own == self._granted_over else granted | own

    @property
    def _requests(self) -> tuple[str, ...]:
        granted = () if self._grant is None else self._grant.request
        return (*self._request.digests, *granted)

    @property
    def _needs_request(self) -> bool:
        if self._relaxed:
            return False
        return self._request.configured if self._grant is None else self._grant.required

    @property
    def _shared_counts(self) -> bool:
        return self._grant is None or self._grant.shared_token

    # --- KV connections ----------------------------------------------------------------------

    def proof_to(self, peer: str) -> Proof | None:
        """How to prove this instance to a peer; None where no key is known."""
        known = self._peers.get(peer)
        usable = known is not None and not known.legacy and peer not in self._pair_refused
        if known is not None and usable:
            return Proof(known.keys[0])
        return shared_proof(self._kv) if self._shared_for(peer) else None

    def member_proofs(self) -> tuple[Proof, ...]:
        """What members of one instance prove to each other; the first is used."""
        granted = () if self._grant is None else self._grant.members
        pairs = tuple(Proof(key) for key in granted)
        shared = bool(self._kv) and self._shared_counts
        return (*pairs, shared_proof(self._kv)) if shared else pairs

    def proofs_from(self, peer: str) -> tuple[Proof, ...]:
        """What a connecting peer may prove; empty for one that nothing is known of."""
        known = self._peers.get(peer)
        pairs = () if known is None else tuple(Proof(key) for key in known.keys)
        return (*pairs, shared_proof(self._kv)) if self._shared_for(peer) else pairs

    def _shared_for(self, peer: str) -> bool:
        if not self._kv or not self._shared_counts:
            return False
        return self._grant is None or self._relaxed or self._legacy(peer)

    def _legacy(self, peer: str) -> bool:
        known = self._peers.get(peer)
        return known is not None and bool(known.legacy)


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="unauthorized")
