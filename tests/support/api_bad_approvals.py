"""Bad objects: a person's answers to proposals, and counts that a person holds."""

from __future__ import annotations

from typing import Any

from tests.support.api_case import Bad, of_service
from tests.support.api_objects import GONE

_AT = "spec.scenarios[0].ratio"
_RATIO = "spec.scenarios.0.ratio"
_COUNTS = {"groups": 1, "prefill": 2, "decode": 2}
_HOLD = {"until": "2026-12-31T00:00:00Z", "counts": _COUNTS}
_ANSWER = {"proposal": "3f09ab12", "verdict": "Approve"}


def _bad(title: str, part: str, value: Any, field: str, says: str, code: int = 422) -> Bad:
    return of_service(title, {f"{_RATIO}.{part}": value}, f"{_AT}.{part}{field}", says, code=code)


def _hold(title: str, field: str, says: str, code: int = 422, /, **edits: Any) -> Bad:
    value = {k: v for k, v in (_HOLD | edits).items() if v is not GONE}
    return _bad(title, "hold", value, field, says, code)


def _answer(title: str, field: str, says: str, code: int = 422, /, **edits: Any) -> Bad:
    value = {k: v for k, v in (_ANSWER | edits).items() if v is not GONE}
    return _bad(title, "answer", value, field, says, code)


_ID = "eight characters of 0-9 and a-f"
BAD_APPROVALS: tuple[Bad, ...] = (
    _bad("an approval in no time", "approvalSeconds", 59, "", "greater than or equal to 60"),
    _bad("an approval in a week", "approvalSeconds", 604_800, "", "less than or equal to 86400"),
    _bad("an approval in words", "approvalSeconds", "15m", "", "must be of type integer"),
    _bad("an answer as a word", "answer", "Approve", "", "must be of type object"),
    _answer("an answer to nothing", ".proposal", "Required value", proposal=GONE),
    _answer("an answer without a verdict", ".verdict", "Required value", verdict=GONE),
    _answer("a verdict of its own", ".verdict", '"Approve", "Reject"', verdict="approve"),
    _answer("a proposal in capitals", ".proposal", _ID, proposal="3F09AB12"),
    _answer("a short proposal", ".proposal", _ID, proposal="3f09"),
    _answer("a long proposal", ".proposal", "may not be more than 8", proposal="3f09ab12c"),
    _answer("an answer with a reason", ".why", "unknown field", 400, why="too dear"),
    _hold("a hold without an end", ".until", "Required value", until=GONE),
    _hold("a hold of nothing", ".counts", "Required value", counts=GONE),
    _hold("a hold until a date", ".until", "a UTC time such as", until="2026-12-31"),
    _hold("a hold in a local time", ".until", "a UTC time such as",
          until="2026-12-31T00:00:00+08:00"),
    _hold("a hold until month 13", ".until", "that the calendar has",
          until="2026-13-01T00:00:00Z"),
    _hold("a hold until 31 February", ".until", "that the calendar has",
          until="2026-02-31T00:00:00Z"),
    _hold("a hold until hour 25", ".until", "that the calendar has",
          until="2026-12-01T25:00:00Z"),
    _hold("a hold until long ago", ".until", "that the calendar has",
          until="0001-01-01T00:00:00Z"),
    _hold("a hold until a number", ".until", "must be of type string", until=1_800_000_000),
    _hold("a hold of no group", ".counts.groups", "greater than or equal to 1",
          counts=_COUNTS | {"groups": 0}),
    _hold("a hold of part of the counts", ".counts.decode", "Required value",
          counts={"groups": 1, "prefill": 1}),
    _hold("a hold by a person", ".who", "unknown field", 400, who="me"),
)  # fmt: skip
