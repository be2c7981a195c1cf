"""What gateways of one service say to each other about limits: one report, one answer.

One gateway decides for all (`RouteTable.gateways`, the first). The others send it a `LimitReport`:
how many requests they have in progress by subject, what settled, and which requests ask to be
admitted. Counts are absolute, so a report that was lost is made good by the next one. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pdserve.terms.json import JsonObject
from pdserve.terms.limits import UsageLimits
from pdserve.wire import bounds
from pdserve.wire.bounds import Fields, WireError
from pdserve.wire.limits import read_limits

MAX_REPORT: Final = 1 << 20
"""Bytes."""
MAX_ASKS: Final = 1024
"""Requests that one report asks for; more wait for the next one."""
MAX_STATES: Final = 4096
"""Subjects that one report names."""
MAX_TEXT: Final = 128
MAX_TOKENS: Final = 2**40
MAX_PER_REQUEST: Final = 4
"""Subjects that one request counts in."""
_NEVER: Final = 1e12
"""Seconds that stand for an infinite wait: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class SubjectState:
    """What a gateway says of one subject."""

    id: str
    limits: UsageLimits
    held: int = 0
    """Requests that it has in progress."""
    settled: int = 0
    """Tokens that it gives back; negative: that it used beyond what was taken."""
    requests: float | None = None
    tokens: float | None = None
    """At most so much was left of the rates, as far as it learned; None: it does not know."""


@dataclass(frozen=True, slots=True)
class AskedLimits:
    """A request that asks to be admitted: its subjects, as positions in the report."""

    subjects: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class LimitReport:
    """From a gateway to the one that decides."""

    sender: str
    states: tuple[SubjectState, ...]
    asks: tuple[AskedLimits, ...]

    def to_json(self) -> JsonObject:
        """Plain JSON value."""
        return {
            "from": self.sender,
            "states": [_state_json(s) for s in self.states],
            "asks": [{"subjects": list(a.subjects), "tokens": a.tokens} for a in self.asks],
        }

    @staticmethod
    def from_json(value: object) -> LimitReport:
        """Parse `to_json`'s value.

        Raises:
            WireError: a field is missing, of another type or out of its bounds.
        """
        report = Fields(value, "limit report")
        states = tuple(_state(s) for s in report.objects("states", most=MAX_STATES))
        asks = tuple(_ask(a, len(states)) for a in report.objects("asks", most=MAX_ASKS))
        return LimitReport(report.text("from", most=MAX_TEXT), states, asks)


@dataclass(frozen=True, slots=True)
class LimitVerdict:
    """The answer to one ask; `kind` is empty where it was admitted."""

    kind: str = ""
    subject: int = 0
    """Position in the ask's subjects."""
    limit: int = 0
    used: int = 0
    asked: int = 0
    wait: float = 0.0
    """Seconds; infinite: never."""

    def to_json(self) -> JsonObject:
        """Plain JSON value."""
        if not self.kind:
            return {}
        return {
            "kind": self.kind, "subject": self.subject, "limit": self.limit, "used": self.used,
            "asked": self.asked, "wait": min(self.wait, _NEVER),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class LimitAnswer:
    """To a report: a verdict for each ask, and what is left for each of its subjects."""

    verdicts: tuple[LimitVerdict, ...]
    left: tuple[tuple[float | None, float | None], ...]
    """Requests and tokens; None where that is not limited."""

    def to_json(self) -> JsonObject:
        """Plain JSON value."""
        return {
            "verdicts": [v.to_json() for v in self.verdicts],
            "left": [{"requests": r, "tokens": t} for r, t in self.left],
        }

    @staticmethod
    def from_json(value: object, report: LimitReport) -> LimitAnswer:
        """Parse `to_json`'s value, the answer to `report`.

        Raises:
            WireError: it is none, or does not answer all of the report.
        """
        answer = Fields(value, "limit answer")
        verdicts = answer.objects("verdicts", most=MAX_ASKS)
        left = answer.objects("left", most=MAX_STATES)
        if (len(verdicts), len(left)) != (len(report.asks), len(report.states)):
            raise WireError("limit answer: it does not answer all of the report")
        return LimitAnswer(
            tuple(map(_verdict, verdicts)),
            tuple((_level(one, "requests"), _level(one, "tokens")) for one in left),
        )


def _state_json(state: SubjectState) -> JsonObject:
    found: JsonObject = {"id": state.id, "limits": state.limits.to_json()}
    for name in ("held", "settled"):
        if value := getattr(state, name):
            found[name] = value
    for name in ("requests", "tokens"):
        if (level := getattr(state, name)) is not None:
            found[name] = level
    return found


def _state(state: Fields) -> SubjectState:
    return SubjectState(
        state.text("id", most=MAX_TEXT),
        read_limits(state.object("limits")),
        state.integer("held", 0),
        state.integer("settled", 0, low=-MAX_TOKENS, high=MAX_TOKENS),
        _level(state, "requests"),
        _level(state, "tokens"),
    )


def _ask(ask: Fields, states: int) -> AskedLimits:
    found = ask.items("subjects", most=MAX_PER_REQUEST)
    path = f"{ask.path}.subjects"
    subjects = tuple(bounds.integer(s, path, high=states - 1) for s in found)
    return AskedLimits(subjects, ask.integer("tokens", high=MAX_TOKENS))


def _verdict(verdict: Fields) -> LimitVerdict:
    if not verdict.has("kind"):
        return LimitVerdict()
    wait = verdict.number("wait", high=_NEVER)
    return LimitVerdict(
        verdict.choice("kind", ("requests", "tokens", "concurrent")),
        verdict.integer("subject", high=MAX_PER_REQUEST - 1),
        verdict.integer("limit"),
        verdict.integer("used", low=0, high=MAX_TOKENS),
        verdict.integer("asked", high=MAX_TOKENS),
        float("inf") if wait >= _NEVER else wait,
    )


def _level(fields: Fields, name: str) -> float | None:
    return fields.number(name, low=-1e9, high=1e9) if fields.has(name) else None
