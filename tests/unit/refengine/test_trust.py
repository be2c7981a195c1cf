"""Which credentials an engine accepts: by use, by grant, during a rotation, and afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdserve.engines.credentials import Credential
from pdserve.engines.trust import Proof, Trust, shared_proof
from pdserve.http1.errors import ApiError
from pdserve.wire.credentials import Grant, PeerGrant, digest

NEW, OLD = "a" * 64, "b" * 64
SHARED = shared_proof("shared")


def grant(
    *keys: str, legacy: bool | None = False, required: bool = True, shared: bool = True
) -> Grant:
    peers = {"p0": PeerGrant(keys or (NEW,), legacy)}
    return Grant("r", (digest("op"),), (digest("gw"),), required, shared, peers)


def refused(check: object, value: str) -> bool:
    try:
        check(f"Bearer {value}")  # type: ignore[operator]
    except ApiError as error:
        assert error.status == 401
        return True
    return False


def modern(*keys: str, shared: bool = True) -> Trust:
    """An engine pod of this version that had its first push."""
    trust = Trust("shared", Credential("op"))
    trust.take(grant(*keys, shared=shared), trust.controls("Bearer op"))
    return trust


def test_each_credential_opens_its_own_paths_alone() -> None:
    trust = modern()
    assert trust.controls("Bearer op") == "control"
    assert refused(trust.controls, "gw")
    assert refused(trust.check_generation, "op")
    assert refused(trust.check_release, "op")
    assert not refused(trust.check_generation, "gw")
    assert not refused(trust.check_release, "gw")
    for nothing in ("", "x", NEW):
        assert refused(trust.controls, nothing)
        assert refused(trust.check_generation, nothing)
        assert refused(trust.check_release, nothing)


def test_the_shared_token_alone_stands_for_all_uses() -> None:
    trust = Trust("shared")
    assert trust.controls("Bearer shared") == "shared"
    assert refused(trust.controls, "other")
    assert not refused(trust.check_release, "shared")
    assert not refused(trust.check_generation, ""), "gateways of that version send nothing"
    assert trust.proof_to("any") == SHARED
    assert trust.proofs_from("any") == (SHARED,)


def test_without_any_credential_everything_is_open() -> None:
    trust = Trust("")
    assert trust.controls("") == "control"
    trust.check_generation("")
    trust.check_release("")


def test_a_request_credential_of_its_own_is_required() -> None:
    trust = Trust("shared", None, Credential("gw"))
    assert refused(trust.check_generation, "")
    assert not refused(trust.check_generation, "gw")


def test_pair_keys_alone_count_between_new_instances() -> None:
    trust = modern(NEW, OLD)
    assert trust.proof_to("p0") == Proof(NEW), "the first is sent"
    assert trust.proofs_from("p0") == (Proof(NEW), Proof(OLD)), "all are accepted"
    assert trust.proof_to("p9") is None
    assert trust.proofs_from("p9") == ()


def test_a_peer_marked_legacy_may_use_the_shared_token_and_no_other() -> None:
    trust = Trust("shared", Credential("op"))
    given = grant(legacy=True)
    peers = {**given.peers, "p1": PeerGrant((OLD,), legacy=False)}
    trust.take(Grant("r", given.control, given.request, False, True, peers), "control")
    assert trust.proof_to("p0") == SHARED
    assert trust.proofs_from("p0") == (Proof(NEW), SHARED)
    assert trust.proofs_from("p1") == (Proof(OLD),)
    trust.take(grant(legacy=None), "control")
    assert trust.proof_to("p0") == SHARED, "not known now: what was said before holds"
    trust.take(grant(legacy=False), "control")
    assert trust.proof_to("p0") == Proof(NEW)


def test_an_old_operator_that_takes_over_gets_an_old_engine() -> None:
    trust = modern()
    assert trust.controls("Bearer shared") == "shared"
    trust.take(None, "shared")
    assert not refused(trust.check_generation, ""), "gateways of that version send nothing"
    assert trust.proof_to("new-pod") == SHARED
    assert SHARED in trust.proofs_from("p0")
    assert trust.proof_to("p0") == Proof(NEW), "a peer that was not told yet still asks for it"
    trust.pair_refused("p0")
    assert trust.proof_to("p0") == SHARED, "it started anew and knows no pair key"
    assert trust.revision == ""
    trust.take(grant(), "control")
    assert refused(trust.check_generation, "")
    assert trust.proofs_from("p0") == (Proof(NEW),)


def test_a_table_without_grant_from_the_control_credential_loosens_nothing() -> None:
    trust = modern()
    trust.take(None, "control")
    assert refused(trust.check_generation, "")
    assert trust.proofs_from("p0") == (Proof(NEW),)
    trust.pair_refused("p0")
    assert trust.proof_to("p0") == Proof(NEW), "a refusal is no reason to fall back"


def test_once_it_is_over_the_shared_token_opens_nothing() -> None:
    trust = modern(shared=False)
    assert refused(trust.controls, "shared")
    assert refused(trust.check_release, "shared")
    trust.take(grant(legacy=True, shared=False), "control")
    assert trust.proof_to("p0") is None, "not even for a peer that knows no other"
    assert trust.proofs_from("p0") == (Proof(NEW),)


def test_the_transport_hears_of_every_change() -> None:
    trust, calls = Trust("shared", Credential("op")), []
    trust.changed = lambda: calls.append(1)
    trust.take(grant(), "control")
    trust.take(grant(OLD), "control")
    assert len(calls) == 2


def test_a_grant_replaces_the_processs_own_until_its_file_changes(tmp_path: Path) -> None:
    """After a rotation the old one counts no more; an operator that lost its secrets comes back."""
    file, now = tmp_path / "control", [0.0]
    file.write_text("first")
    trust = Trust("", Credential(file=file, clock=lambda: now[0]))
    assert trust.controls("Bearer first") == "control"
    trust.take(grant(shared=False), "control")
    assert refused(trust.controls, "first")
    assert trust.controls("Bearer op") == "control"
    file.write_text("made anew")
    now[0] = 2.0
    assert trust.controls("Bearer made anew") == "control"
    assert trust.controls("Bearer op") == "control"


@pytest.mark.parametrize("known", ["op-1", "op-2"])
def test_during_a_rotation_both_control_credentials_count(known: str) -> None:
    trust = Trust("", Credential("op-1"))
    given = grant()
    both = (digest("op-1"), digest("op-2"))
    trust.take(Grant("r", both, given.request, True, False, {}), "control")
    assert trust.controls(f"Bearer {known}") == "control"
