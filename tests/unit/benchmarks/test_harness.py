"""The form of every bench: a table, a JSON file, an exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.harness import (
    RANGES,
    ROOT,
    Progress,
    Row,
    concluded,
    out_of_range,
    report,
    table,
)


def row(**fields: Any) -> Row:
    """A row that holds: 2 s against 1 s, at most 4 times as much."""
    given: dict[str, Any] = {
        "what": "start", "value": 2.0, "unit": "s", "vs": "nothing", "reference": 1.0,
        "floor": 4.0, "better": "lower", **fields,
    }  # fmt: skip
    return Row(**given)


def test_json_has_the_agreed_shape(tmp_path: Path) -> None:
    assert report("sample", [row()], tmp_path) == 0
    document = json.loads((tmp_path / "sample.json").read_text())
    assert list(document) == ["name", "versions", "load", "rows"]
    assert document["name"] == "sample"
    assert len(document["load"]) == 3
    assert document["versions"].keys() >= {"pdserve", "python", "kopf", "kubernetes"}
    assert document["rows"] == [
        {
            "what": "start",
            "value": 2.0,
            "unit": "s",
            "vs": "nothing: 1 s",
            "ratio": 2.0,
            "floor": 4.0,
            "ok": True,
            "n": 1,
            "spread": 0.0,
        }
    ]


@pytest.mark.parametrize(
    ("value", "better", "ok"),
    [
        (3.9, "lower", True),
        (4.0, "lower", True),
        (4.1, "lower", False),
        (40.0, "lower", False),
        (4.1, "higher", True),
        (4.0, "higher", True),
        (3.9, "higher", False),
        (0.0, "higher", False),
    ],
)
def test_a_row_holds_on_the_good_side_of_its_floor(value: float, better: Any, ok: bool) -> None:
    assert row(value=value, better=better).ok is ok


def test_one_failing_floor_fails_the_bench_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(), row(what="recovery", value=9.0), row(what="memory")]
    assert report("sample", rows, tmp_path) == 1
    said = capsys.readouterr()
    assert said.err.strip() == "below the floor: recovery"
    assert [line.split()[-1] for line in said.out.splitlines()[1:]] == ["ok", "FAILED", "ok"]
    document = json.loads((tmp_path / "sample.json").read_text())
    assert [r["ok"] for r in document["rows"]] == [True, False, True]


def test_none_of_something_is_a_floor_of_zero() -> None:
    writes = row(what="writes", value=0, reference=480, floor=0)
    assert writes.ok
    assert not row(what="writes", value=1, reference=480, floor=0).ok


@pytest.mark.parametrize("reference", [0.0, -1.0, float("nan"), float("inf")])
def test_a_yardstick_that_measures_nothing_is_refused(reference: float) -> None:
    with pytest.raises(ValueError, match=r"start: reference .* is not above 0"):
        row(reference=reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"start: value .* is not a number"):
        row(value=value)


def test_the_table_has_one_line_per_row_and_says_which_side_is_good() -> None:
    head, first, second = table(
        [row(), row(what="speed", value=5.0, better="higher", n=5, spread=0.25)]
    ).splitlines()
    assert head.split() == [
        "what", "value", "unit", "vs", "reference", "ratio", "floor", "n", "spread",
    ]  # fmt: skip
    assert first.split() == ["start", "2", "s", "nothing", "1", "2.00", "<=", "4", "1", "-", "ok"]
    assert second.split()[-5:] == [">=", "4", "5", "0.25", "ok"]


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Progress()("half way")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("[") and said.err.endswith("s] half way\n")


@pytest.mark.parametrize("bench", ["start", "hostile"])
def test_help_says_what_a_bench_is_about(bench: str) -> None:
    argv = [sys.executable, str(ROOT / "benchmarks" / f"{bench}.py"), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert f"make bench-{bench}" in done.stdout


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (AssertionError("an engine ended"), 1, "stopped: an engine ended"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_bench_that_cannot_go_on_says_why(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> list[Row]:
        raise error

    assert concluded("sample", work()) == status
    assert capsys.readouterr().err.strip() == told


RANGE = [
    ("inside", 2.0, {"sample": {"start": [1, 3]}}, []),
    ("at its ends", 2.0, {"sample": {"start": [2, 2]}}, []),
    ("above", 2.5, {"sample": {"start": [1, 2]}}, ["start: 2.5 is not within 1 and 2"]),
    ("below: it measures nothing", 0.0, {"sample": {"start": [1, 2]}},
     ["start: 0 is not within 1 and 2"]),
    ("not measured", 2.0, {"sample": {"end": [1, 2]}}, ["end was not measured"]),
    ("another bench", 2.0, {"other": {"start": [0, 1]}}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "stated", "want"), [r[1:] for r in RANGE], ids=[r[0] for r in RANGE]
)
def test_figures_lie_within_the_stated_ranges(
    value: float, stated: dict[str, Any], want: list[str], tmp_path: Path
) -> None:
    ranges = tmp_path / "ranges.json"
    ranges.write_text(json.dumps(stated))
    assert out_of_range("sample", [row(value=value)], ranges) == want


def test_a_figure_out_of_range_fails_a_bench_at_its_full_size(tmp_path: Path) -> None:
    name, stated = next(iter(json.loads(RANGES.read_text()).items()))
    ranges = [row(what=what, value=low, floor=1e9) for what, (low, _) in stated.items()]
    assert report(name, ranges, tmp_path, ranges=True) == 0
    assert report(name, ranges[1:], tmp_path, ranges=True) == 1
    assert report(name, ranges[1:], tmp_path) == 0


def test_every_range_has_room() -> None:
    for stated in json.loads(RANGES.read_text()).values():
        for low, high in stated.values():
            assert 0 <= low < high
