"""Forms and derivation of credentials, and the grant on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.wire import credentials as c
from pdserve.wire.bounds import WireError

KEY = c.pair_key("m", "ns/g-0", "p0", "d0")
GRANT = c.Grant(
    revision="r1",
    control=(c.digest("op"),),
    request=(c.digest("gw"), c.digest("gw-old")),
    required=True,
    shared_token=False,
    peers={"d0": c.PeerGrant((KEY,)), "d1": c.PeerGrant((KEY,), legacy=True)},
)


def test_a_grant_survives_the_wire() -> None:
    assert c.Grant.from_json(GRANT.to_json()) == GRANT
    assert c.Grant.from_json({**GRANT.to_json(), "new": 1}) == GRANT, "unknown fields are ignored"


def test_a_grant_shows_no_key_in_logs() -> None:
    assert KEY not in repr(GRANT)


@pytest.mark.parametrize(
    "other",
    [("x", "ns/g-0", "p0", "d0"), ("m", "other/g-0", "p0", "d0"), ("m", "ns/g-0", "p1", "d0"),
     ("m", "ns/g-0", "p0", "d1"), ("m", "ns/g-0", "d0", "p0"), ("m", "ns/g-0\0p0", "d0", "")],
)  # fmt: skip
def test_a_pair_key_is_of_one_master_group_and_pair(other: tuple[str, str, str, str]) -> None:
    assert c.pair_key(*other) != KEY


def test_an_old_and_a_new_value_are_accepted_and_nothing_else() -> None:
    known = c.digests(("new", c.digest("old")))
    assert c.accepted("Bearer new", known)
    assert c.accepted("bearer  old", known)
    for wrong in (
        "",
        "new",
        "Basic new",
        "Bearer",
        "Bearer ",
        "Bearer x",
        f"Bearer {c.digest('old')}",
    ):
        assert not c.accepted(wrong, known), wrong
    assert not c.accepted("Bearer new", ())


def test_values_are_lines() -> None:
    assert c.values("a\n\n b \r\n") == ("a", "b")
    assert c.values("") == ()
    assert len(c.values("x\n" * 100)) == c.MAX_VALUES


BAD: dict[str, Any] = {
    "no object": [],
    "no revision": {**GRANT.to_json(), "revision": None},
    "long revision": {**GRANT.to_json(), "revision": "r" * 257},
    "no control": {**GRANT.to_json(), "control": []},
    "values instead of digests": {**GRANT.to_json(), "request": ["secret"]},
    "short digest": {**GRANT.to_json(), "request": ["sha256:ab"]},
    "too many": {**GRANT.to_json(), "request": [c.digest("x")] * 9},
    "flag is text": {**GRANT.to_json(), "required": "no"},
    "no shared flag": {k: v for k, v in GRANT.to_json().items() if k != "sharedToken"},
    "peers is a list": {**GRANT.to_json(), "peers": []},
    "peer is text": {**GRANT.to_json(), "peers": {"d0": "x"}},
    "peer without keys": {**GRANT.to_json(), "peers": {"d0": {"keys": []}}},
    "key is no hex": {**GRANT.to_json(), "peers": {"d0": {"keys": ["z" * 64]}}},
    "legacy is text": {**GRANT.to_json(), "peers": {"d0": {"keys": [KEY], "legacy": "yes"}}},
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_grant_is_refused_with_its_field(case: str) -> None:
    with pytest.raises(WireError, match="credentials"):
        c.Grant.from_json(BAD[case])
