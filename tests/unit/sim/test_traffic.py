"""What the shapes ask, and what traces say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pdserve.sim.shapes import DRAWN, FIRST_13
from pdserve.sim.traces import TraceError, azure, mooncake
from pdserve.sim.traffic import block

RATES: dict[str, list[tuple[float, float]]] = {  # name: (time, requests/s) ...
    "constant": [(0, 20), (3599, 20)],
    "step_x2": [(1199.9, 15), (1200, 30), (5000, 30)],
    "step_half": [(1199.9, 30), (1200, 15)],
    "ramp": [(100, 8), (900, 8), (2400, 20), (3900, 32), (5000, 32)],
    "spike": [(1199, 12), (1200, 36), (1379, 36), (1380, 12)],
    "square": [(0, 12), (900, 28), (1800, 12), (5300, 28)],
    "tide": [(0, 3), (2700, 16.5), (5400, 30), (10799, 3)],
}


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str) -> None:
    times = [at for at, _ in RATES[name]]
    rates = [rate for _, rate in RATES[name]]
    assert DRAWN[name].rate(np.array(times)) == pytest.approx(rates, abs=0.05)


def test_the_table_has_thirteen_shapes_of_which_two_are_traces() -> None:
    assert len(FIRST_13) == 13
    assert set(FIRST_13) - set(DRAWN) == {"azure_x5", "mooncake_x2"}
    others = {"delayed", "outage", "shortage", "slow_decode", "losses", "hopeless"}
    assert set(DRAWN) - set(FIRST_13) == others


def test_hopeless_prompts_come_with_their_share() -> None:
    tokens = np.concatenate([block(DRAWN["hopeless"], 1, k).tokens for k in range(20)])
    assert (tokens[:, 0] > 9_500).mean() == pytest.approx(0.039, rel=0.15)


def test_a_block_is_a_function_of_its_seed_with_the_announced_means() -> None:
    shape = DRAWN["prefix_drop"]
    blocks = [block(shape, 1, minute) for minute in range(20)]
    again = block(shape, 1, 7)
    assert (again.times == blocks[7].times).all()
    assert (again.tokens == blocks[7].tokens).all()
    assert (
        len(block(shape, 2, 7).times) != len(again.times)
        or (block(shape, 2, 7).times != again.times).any()
    )
    tokens = np.concatenate([b.tokens for b in blocks])
    assert len(tokens) == pytest.approx(12 * 1200, rel=0.03)
    assert tokens.mean(axis=0) == pytest.approx([2400, 0.7 * 2400, 150], rel=0.03)
    logs = np.log(tokens[:, 0])
    assert logs.std() == pytest.approx(0.5, rel=0.03)
    assert all((np.diff(b.times) >= 0).all() for b in blocks)
    assert block(shape, 1, 30).tokens[:, 1].max() == 0, "no hits from 1,500 s on"


def test_azures_trace_is_laid_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    shape = azure(path, 1)
    assert shape.recorded is not None
    times, tokens = shape.recorded.times, shape.recorded.tokens
    assert len(times) == 10
    assert times[0] == 0.0
    assert (np.diff(times) >= 0).all()
    assert 4.3 < times[-1] < 65
    assert sorted(map(tuple, tokens.tolist())) == [(374, 0, 44)] * 5 + [(396, 0, 109)] * 5
    assert azure(path, 2).recorded.times[-1] != times[-1]  # type: ignore[union-attr]  # as above


def test_mooncakes_hits_are_beginnings_that_came_before(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    entries = [
        {"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 2000, "input_length": 1400, "output_length": 6, "hash_ids": [1, 2, 9]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 7, "hash_ids": [1, 2]},
        {"timestamp": 4000, "input_length": 600, "output_length": 0, "hash_ids": [7, 2]},
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    shape = mooncake(path, 1, copies=1)
    assert shape.recorded is not None
    assert shape.recorded.times.tolist() == [0.0, 2.0, 3.0, 4.0]
    assert shape.recorded.tokens.tolist() == [
        [1500, 0, 5], [1400, 1024, 6], [1024, 1023, 7], [600, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no requests"),
        ("a,b\n1,2\n", "line 2: there is no 'TIMESTAMP'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: Invalid isoformat"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,x,2\n", "line 2: invalid"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6\n", "line 2:"),
    ],
)
def test_a_broken_csv_says_where(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=why):
        azure(path, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{}\n", "line 1: there is no 'hash_ids'"),
        (b"[]\n", "line 1: list indices"),
        (b"nonsense\n", "line 1: Expecting value"),
        (b"\xff\n", "invalid start byte"),
    ],
)
def test_a_broken_jsonl_says_where(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=why):
        mooncake(path, 1)


GOOD = {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"timestamp": float("nan")}, "line 2: nan is no time"),
        ({"timestamp": float("inf")}, "line 2: inf is no time"),
        ({"timestamp": 3e11}, "it lasts 3472"),
        ({"timestamp": "1e999"}, "line 2: inf is no time"),
        ({"input_length": float("inf")}, "line 2: cannot convert"),
        ({"input_length": 10**30}, "line 2: .* tokens; 0 to 10000000 are right"),
        ({"output_length": -1}, "line 2: -1 tokens"),
        ({"hash_ids": [float("inf")]}, "line 2: cannot convert"),
    ],
)
def test_no_value_of_an_entry_is_run_that_makes_no_sense(
    tmp_path: Path, entry: dict[str, object], why: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **entry}) + "\n")
    with pytest.raises(TraceError, match=why):
        mooncake(path, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ContextTokens,GeneratedTokens,TIMESTAMP\n1,2\n", "line 2: Invalid isoformat"),
        (f"TIMESTAMP,ContextTokens,GeneratedTokens\n{'x' * 200_000},1,1\n", "line 2: field larger"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,-3,1\n", "-3 tokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.1e999,3,1\n", "inf is no"),
    ],
)
def test_no_row_is_run_that_makes_no_sense(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=why):
        azure(path, 1)


def test_nesting_without_end_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(TraceError, match="line 1: "):
        mooncake(path, 1)
