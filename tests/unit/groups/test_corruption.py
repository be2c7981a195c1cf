"""Which instance makes KV arrive corrupt: votes as drawings of the pulls between instances."""

from __future__ import annotations

import pytest
from tests.unit.groups.test_links_and_routes import instance, table, up

from pdserve.groups import types as t
from pdserve.groups.corruption import (
    FAULT,
    LEAST_CORRUPT,
    LEAST_PULLS,
    PairCounts,
    judge_corruption,
    vote,
)
from pdserve.groups.instances import InstanceObs
from pdserve.wire.links import LinkReport


def pairs(drawing: str) -> dict[tuple[str, str], PairCounts]:
    """A row for each prefill, a column for each decode: `corrupt/pulls`, `.` for no pull."""
    head, *rows = [line.split() for line in drawing.strip().splitlines()]
    found = {}
    for prefill, *cells in rows:
        for decode, cell in zip(head, cells, strict=True):
            if cell != ".":
                corrupt, pulls = map(int, cell.split("/"))
                found[prefill, decode] = PairCounts(pulls, corrupt)
    return found


VOTES: dict[str, tuple[str, str | None]] = {
    "a bad prefill": (
        """
            d0    d1    d2
        p0  0/90  0/90  0/90
        p1  9/90  9/90  9/90
        """,
        "p1",
    ),
    "a bad prefill, the only one": (
        """
            d0    d1
        p0  9/90  9/90
        """,
        "p0",
    ),
    "a bad decode": (
        """
            d0    d1    d2
        p0  0/90  9/90  0/90
        p1  0/90  9/90  0/90
        """,
        "d1",
    ),
    "a bad decode, the only one": (
        """
            d0
        p0  9/90
        p1  9/90
        p2  9/90
        """,
        "d0",
    ),
    "a bad decode beside one prefill": (
        """
            d0    d1
        p0  0/90  9/90
        """,
        "d1",
    ),
    "a bad prefill beside one decode": (
        """
            d0
        p0  0/90
        p1  9/90
        """,
        "p1",
    ),
    "two bad decodes": (
        """
            d0    d1    d2    d3
        p0  0/90  9/90  0/90  9/90
        p1  0/90  9/90  0/90  9/90
        """,
        "d1",
    ),
    "a bad link": (
        """
            d0    d1
        p0  0/90  0/90
        p1  9/90  0/90
        """,
        "p1",
    ),
    "one pair alone": (
        """
            d0
        p0  9/90
        """,
        "p0",
    ),
    "what all share": (
        """
            d0    d1
        p0  9/90  9/90
        p1  9/90  9/90
        """,
        None,
    ),
    "too few corrupt ones": (
        """
            d0    d1
        p0  2/3   2/90
        """,
        None,
    ),
    "too small a share": (
        """
            d0
        p0  9/900
        """,
        None,
    ),
    "a bad prefill that few have pulled from": (
        """
            d0    d1    d2
        p0  0/90  0/90  0/90
        p1  3/3   9/10  0/1
        """,
        "p1",
    ),
    "a decode that accuses all is at fault itself": (
        """
            d0     d1     d2
        p0  90/90  0/90   0/90
        p1  90/90  0/90   0/90
        p2  90/90  0/90   0/90
        """,
        "d0",
    ),
    "nothing": ("d0\np0 0/90", None),
}


@pytest.mark.parametrize("case", VOTES)
def test_vote(case: str) -> None:
    drawing, want = VOTES[case]
    found = vote(pairs(drawing))
    assert (found and found.instance) == want


@pytest.mark.parametrize(
    ("drawing", "where"),
    [(VOTES["a bad link"][0], "the link between them"), (VOTES["one pair alone"][0], "p0")],
)
def test_a_link_takes_the_prefill_first_and_then_the_decode(drawing: str, where: str) -> None:
    first, second = vote(pairs(drawing)), vote(pairs(drawing), {"p0", "p1"})
    assert first is not None
    assert first.message.endswith(f"arrived corrupt; at fault seems {where}")
    assert second is not None
    assert second.instance == "d0"


def test_the_message_has_the_figures() -> None:
    found = vote(pairs(VOTES["a bad prefill"][0]))
    assert found is not None
    assert found.message == (
        "27 of 270 KV pulls with 3 decodes arrived corrupt, and it is sound with 0"
    )


@pytest.mark.parametrize(
    ("corrupt", "pulls", "bad", "sound"),
    [
        (LEAST_CORRUPT, 150, True, False),
        (LEAST_CORRUPT, 151, False, True),
        (LEAST_CORRUPT - 1, LEAST_CORRUPT - 1, False, False),
        (0, LEAST_PULLS, False, True),
        (0, LEAST_PULLS - 1, False, False),
    ],
)
def test_a_pair_is_bad_or_sound_or_abstains(
    corrupt: int, pulls: int, bad: bool, sound: bool
) -> None:
    counts = PairCounts(pulls, corrupt)
    assert (counts.is_bad(), counts.is_sound) == (bad, sound)


def reports(drawing: str) -> dict[str, LinkReport]:
    found: dict[str, LinkReport] = {}
    for (prefill, decode), counts in pairs(drawing).items():
        report = found.setdefault(decode, up())
        report.pulls[prefill] = counts.pulls
        if counts.corrupt:
            report.corrupt[prefill] = counts.corrupt
    return found


def judged(
    members: list[InstanceObs], drawing: str, repairs: tuple[t.Repair, ...] = ()
) -> dict[str, str]:
    """Messages of those at fault."""
    seen = judge_corruption(members, {0: table(*members)}, reports(drawing), repairs)
    assert [i.name for i in seen] == [i.name for i in members]
    assert all(i.fault in (None, FAULT) for i in seen)
    return {i.name: i.fault_message for i in seen if i.fault}


GROUP = [instance(name) for name in ("p0", "p1", "d0", "d1", "d2")]


def test_the_instance_of_the_vote_is_at_fault() -> None:
    want = "27 of 270 KV pulls with 3 decodes arrived corrupt, and it is sound with 0"
    assert judged(GROUP, VOTES["a bad prefill"][0]) == {"p1": want}
    assert judged(GROUP, VOTES["nothing"][0]) == {}


def test_who_was_counted_stays_at_fault_and_no_other_is_until_it_is_gone() -> None:
    record = t.Repair("p0", 1, 0.0, last_uid="uid-p0", fault=FAULT, message="seen")
    assert judged(GROUP, "d0\np1 0/90", (record,)) == {"p0": "seen"}
    assert judged(GROUP, VOTES["a bad prefill"][0], (record,)) == {"p0": "seen"}
    other = t.Repair("p0", 1, 0.0, last_uid="uid-p0", fault="PodFailed")
    assert list(judged(GROUP, VOTES["a bad prefill"][0], (other,))) == ["p1"]


def test_a_link_whose_prefill_was_replaced_for_it_takes_the_decode() -> None:
    record = t.Repair("p1", 1, 0.0, last_uid="uid-former", fault=FAULT)
    assert list(judged(GROUP, VOTES["a bad link"][0])) == ["p1"]
    assert list(judged(GROUP, VOTES["a bad link"][0], (record,))) == ["d0"]


def test_a_decode_that_accuses_one_after_the_other_accuses_one_only() -> None:
    members = [instance(name) for name in ("p0", "p1", "p2", "d0", "d1")]
    counted: tuple[t.Repair, ...] = ()
    named = []
    for accused in ("p0", "p1", "p2", "p0"):
        cells = {p: "9/90" if p == accused else "0/90" for p in ("p0", "p1", "p2")}
        rows = "".join(f"\n{p} {cell} 0/90" for p, cell in cells.items())
        (name,) = judged(members, f"d0 d1{rows}", counted)
        named.append(name)
        counted += (t.Repair(name, 1, 0.0, last_uid=f"former-{name}", fault=FAULT),)
    assert named == ["p0", "d0", "d0", "d0"]


def test_a_prefill_is_not_replaced_again_on_the_word_of_one_decode() -> None:
    """The new prefill has not served others long enough to be sound with them."""
    drawing = """
            d0    d1
        p0  0/90  0/90
        p1  3/3   0/10
    """
    record = t.Repair("p1", 1, 0.0, last_uid="uid-former", fault=FAULT)
    assert list(judged(GROUP, drawing)) == ["p1"]
    assert list(judged(GROUP, drawing, (record,))) == ["d0"]
    worse = drawing.replace("0/10", "3/10")
    assert list(judged(GROUP, worse, (record,))) == ["p1"]


def test_a_decode_that_was_replaced_takes_no_other_one_with_it() -> None:
    record = t.Repair("d1", 1, 0.0, last_uid="uid-former", fault=FAULT)
    assert list(judged(GROUP, VOTES["a bad link"][0], (record,))) == ["p1"]


@pytest.mark.parametrize(
    ("cell", "want"), [("9/90", []), ("44/90", []), ("45/90", ["p0"]), ("90/90", ["p0"])]
)
def test_the_last_one_of_a_role_goes_only_when_most_of_its_kv_is_corrupt(
    cell: str, want: list[str]
) -> None:
    members = [instance(name) for name in ("p0", "d0", "d1")]
    assert list(judged(members, f"   d0 d1\np0 {cell} {cell}")) == want
    spare = [*members, instance("p1")]
    assert list(judged(spare, f"   d0 d1\np0 {cell} {cell}")) == ["p0"]


def test_counts_of_who_is_no_member_are_not_read() -> None:
    assert judged(GROUP, "   d0 d7\np9 9/90 9/90\np0 . 9/90") == {}
    leaving = [instance("p0", drain_started=1.0), *GROUP[1:]]
    assert judged(leaving, "   d0 d1\np0 9/90 9/90") == {}
