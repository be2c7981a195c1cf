"""Names that are released before their request comes."""

from __future__ import annotations

from pdserve.refengine.runtime.slot_claims import MOST_REMEMBERED, REMEMBER_SECONDS, EarlyReleases


def test_a_name_is_remembered_for_a_while() -> None:
    early = EarlyReleases()
    early.remember("a", 10)
    early.remember("b", 12)
    early.remember("a", 13)  # again: from now on
    assert early.has("a", 12 + REMEMBER_SECONDS) and not early.has("b", 12 + REMEMBER_SECONDS)
    assert not early.has("a", 13 + REMEMBER_SECONDS)
    assert len(early) == 0


def test_the_oldest_of_too_many_names_goes() -> None:
    early = EarlyReleases()
    for number in range(MOST_REMEMBERED + 5):
        early.remember(str(number), 0.0)
    assert len(early) == MOST_REMEMBERED
    assert not early.has("4", 1) and early.has("5", 1) and early.has(str(MOST_REMEMBERED + 4), 1)
