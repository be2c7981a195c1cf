"""Times of objects: every malformed one is recognized, and never ends a reader."""

from __future__ import annotations

import pytest

from pdserve.terms.times import epoch_of, rfc3339, timestamp

START = 1_800_000_000.0

TIMES: tuple[tuple[object, float | None], ...] = (
    ("1970-01-01T00:00:01Z", 1.0),
    ("1970-01-01T01:00:01+01:00", 1.0),
    ("1970-01-01T00:00:00.500000Z", 0.5),
    ("", None),
    ("yesterday", None),
    ("1970-01-01T00:00:01Z" + " " * 64, None),
    ("1970-13-01T00:00:00Z", None),
    (None, None),
    (5, None),
    ({}, None),
)


@pytest.mark.parametrize(("value", "want"), TIMES)
def test_timestamp(value: object, want: float | None) -> None:
    assert timestamp(value) == want


@pytest.mark.parametrize("epoch", [0.0, START, START + 0.9])
def test_times_round_trip_to_the_second(epoch: float) -> None:
    assert epoch_of(rfc3339(epoch)) == float(int(epoch))


def test_a_year_has_four_digits() -> None:
    """What a status says of a time that a user made odd must be a time to the API server."""
    first = epoch_of("0001-01-01T00:00:00Z")
    assert rfc3339(first) == "0001-01-01T00:00:00Z"


def test_fractions_and_offsets_are_read() -> None:
    assert epoch_of("2027-01-15T08:00:00.250000Z") == START + 0.25
    assert epoch_of("2027-01-15T09:00:00+01:00") == START


@pytest.mark.parametrize("text", ["", "yesterday", "2027-01-15T08:00:00"])
def test_bad_times(text: str) -> None:
    with pytest.raises(ValueError):
        epoch_of(text)
