"""Shapes read from recorded traces: Azure's of 2023 and Mooncake's of FAST'25.

The files are not part of this project (Azure/AzurePublicDataset, CC-BY-4.0; kvcache-ai/Mooncake,
Apache-2.0): callers name their paths. Copies of a trace are laid over each other, each moved by a
time of its own, to have the load of several such services; a seed chooses the times.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals, Times, Tokens
from pdserve.sim.shapes import TrafficShape
from pdserve.terms import Slo

MOONCAKE_SLO = Slo(ttft=10.0, handoff=0.5, tpot=0.05, attainment=0.95)
BLOCK_TOKENS = 512
"""Prompt tokens of one of Mooncake's hash ids."""
MOST_TOKENS = 10_000_000
"""Of one prompt or answer."""
LONGEST = 14 * 86400.0
"""Seconds of a trace."""
_WRONG = (
    KeyError, TypeError, ValueError, ArithmeticError, RecursionError, csv.Error,
)  # fmt: skip
"""What reading an entry raises."""


class TraceError(Exception):
    """A trace cannot be read; the message has its path and the line."""


def azure(path: Path, seed: int, copies: int = 5, shift: float = 30.0) -> TrafficShape:
    """`azure_x5`: columns TIMESTAMP, ContextTokens, GeneratedTokens; no prefix hits known.

    Raises:
        TraceError: the file cannot be read as such a trace.
    """
    times: list[float] = []
    tokens: list[tuple[int, int, int]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                times.append(_azure_time(row["TIMESTAMP"] or ""))
                prompt, output = _count(row["ContextTokens"]), _count(row["GeneratedTokens"])
                tokens.append((prompt, 0, output))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from error
    except _WRONG as error:
        raise TraceError(f"{path}, line {len(tokens) + 2}: {_says(error)}") from error
    recorded = _laid_over(path, times, tokens, seed, copies, shift)
    note = f"Azure's conversations of 2023, {copies} copies"
    return _shape(f"azure_x{copies}", recorded, Counts(1, 4, 9), note)


def mooncake(path: Path, seed: int, copies: int = 2, shift: float = 10.0) -> TrafficShape:
    """`mooncake_x2`: JSON lines with timestamp (ms), input_length, output_length, hash_ids.

    A prompt's hit is its longest beginning of hash ids that an earlier prompt of the same copy had:
    an ideal cache shared by all prefills.

    Raises:
        TraceError: the file cannot be read as such a trace.
    """
    times: list[float] = []
    tokens: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                ids = [int(value) for value in entry["hash_ids"]]
                prompt, output = _count(entry["input_length"]), _count(entry["output_length"])
                hit = min(BLOCK_TOKENS * _known(ids, seen), prompt - 1)
                seen.update(ids)
                times.append(_finite(float(entry["timestamp"]) / 1000.0))
                tokens.append((prompt, max(hit, 0), output))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from error
    except _WRONG as error:
        raise TraceError(f"{path}, line {len(tokens) + 1}: {_says(error)}") from error
    recorded = _laid_over(path, times, tokens, seed, copies, shift)
    note = f"Mooncake's conversations, {copies} copies, hits by hash ids"
    return _shape(f"mooncake_x{copies}", recorded, Counts(1, 9, 22), note, MOONCAKE_SLO)


def _known(ids: Sequence[int], seen: set[int]) -> int:
    for index, value in enumerate(ids):
        if value not in seen:
            return index
    return len(ids)


def _azure_time(text: str) -> float:
    """Seconds since the epoch; the trace has seven digits of a second."""
    head, _, fraction = text.partition(".")
    return _finite(
        datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{fraction or 0}")
    )


def _count(value: str | float) -> int:
    count = int(value)
    if not 0 <= count <= MOST_TOKENS:
        raise ValueError(f"{count:.6g} tokens; 0 to {MOST_TOKENS} are right")
    return count


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is no time")
    return seconds


def _says(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _laid_over(
    path: Path, times: list[float], tokens: list[tuple[int, int, int]],
    seed: int, copies: int, shift: float,
) -> Arrivals:  # fmt: skip
    if not times:
        raise TraceError(f"{path}: no requests")
    if max(times) - min(times) > LONGEST:
        days = (max(times) - min(times)) / 86400
        raise TraceError(f"{path}: it lasts {days:.6g} days; at most {LONGEST / 86400:g} are run")
    rows: Tokens = np.maximum(np.array(tokens, dtype=np.int64), [1, 0, 1])
    base: Times = np.array(times) - min(times)
    moves = np.random.default_rng([seed, copies]).uniform(-shift, shift, copies)
    moves -= moves.min()
    every = np.concatenate([base + move for move in moves])
    order = np.argsort(every, kind="stable")
    return Arrivals(every[order], np.concatenate([rows] * copies)[order])


def _shape(
    name: str, recorded: Arrivals, start: Counts, note: str, slo: Slo | None = None
) -> TrafficShape:
    duration = float(recorded.times[-1]) + 1.0
    rate = len(recorded.times) / duration
    shape = TrafficShape(
        name, ((0.0, rate), (duration, rate)), duration, start, note=note, recorded=recorded
    )
    if slo is None:
        return shape
    return TrafficShape(name, shape.points, duration, start, note=note, recorded=recorded, slo=slo)
