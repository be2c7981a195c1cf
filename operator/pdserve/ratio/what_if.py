"""Recorded decisions under other settings: one field of a recorded input changed, decided again.

Each line is decided by itself, with the memory and the counts that it was recorded with: what the
loop would have made of its own other decisions later is not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pdserve.ratio.decide import decide
from pdserve.ratio.records import RecordError, decode, replay
from pdserve.ratio.types import Decision, DecisionInput
from pdserve.terms.json import JsonObject
from pdserve.wire.bounds import WireError, parse_json

SCALED = {
    "slo.ttftMs": ("slo.ttft", 1e-3), "slo.handoffMs": ("slo.handoff", 1e-3),
    "slo.tpotMs": ("slo.tpot", 1e-3), "slo.attainmentPercent": ("slo.attainment", 1e-2),
}  # fmt: skip
"""Fields as PDService spells them: the record's own, and its unit."""
MOST_COUNT = 512
"""Of bounds that are set: every shape within them is looked at."""


@dataclass(frozen=True, slots=True)
class FieldSetting:
    """One field of a `DecisionInput` by its path, and the value it gets."""

    path: str
    value: object


@dataclass(frozen=True, slots=True)
class ReplayedDecision:
    """One line of a record, decided again."""

    service: str
    scenario: str
    recorded: Decision
    again: Decision
    """With the recorded input."""
    equal: bool
    """Whether `again` is `recorded`, byte for byte."""
    what_if: Decision | None
    """With the settings; None where there are none."""


def field_setting(text: str) -> FieldSetting:
    """`path=value` as a setting; the value is JSON, or a word that stands for itself.

    Raises:
        RecordError: there is no `=`, or the value of a scaled field is no number.
    """
    path, sign, raw = text.partition("=")
    if not sign or not path:
        raise RecordError(f"--set {text!r:.80}: want FIELD=VALUE, such as slo.ttftMs=800")
    try:
        value: object = parse_json(raw)
    except WireError:
        value = raw
    if path in SCALED:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordError(f"--set {path}: {raw!r:.40}: want a number")
        path, factor = SCALED[path]
        value = value * factor
    return FieldSetting(path, value)


def replay_line(line: str, settings: Sequence[FieldSetting] = ()) -> ReplayedDecision:
    """Decide one line of `ratio.records.record` again, as it was and with the settings.

    Raises:
        RecordError: the line is no record of this version, or a setting names no field of it.
    """
    recorded, again, equal = replay(line)
    raw = cast(JsonObject, parse_json(line))["input"]
    what_if = _decided(raw, settings) if settings else None
    return ReplayedDecision(raw["service"], raw["scenario"], recorded, again, equal, what_if)


def _decided(raw: JsonObject, settings: Sequence[FieldSetting]) -> Decision:
    """What the input with the settings decides; `raw` is changed in place."""
    for setting in settings:
        _put(raw, setting)
    inp = cast(DecisionInput, decode(raw, DecisionInput, "input"))
    for path, most in (("groups", inp.bounds.groups), ("prefill", inp.bounds.prefill),
                       ("decode", inp.bounds.decode)):  # fmt: skip
        if not 0 <= most.min <= most.max <= MOST_COUNT:
            raise RecordError(f"bounds.{path}: {most.min} to {most.max}: want 0 <= min <= max <= "
                              f"{MOST_COUNT}")  # fmt: skip
    slo = inp.slo
    if min(slo.ttft, slo.handoff, slo.tpot) <= 0.0 or not 0.0 < slo.attainment < 1.0:
        raise RecordError(f"slo: {slo}: want targets above 0 and a share between 0 and 1")
    try:
        return decide(inp)
    except (ArithmeticError, ValueError) as error:
        raise RecordError(f"these settings cannot be decided with: {error}") from error


def _put(raw: JsonObject, setting: FieldSetting) -> None:
    """Set a field of a record in place; only fields that it has can be set."""
    *parents, last = setting.path.split(".")
    found: object = raw
    for name in parents:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict) or last not in found:
        known = ", ".join(sorted(found)) if isinstance(found, dict) else ", ".join(sorted(raw))
        raise RecordError(f"--set {setting.path}: the record has no such field; here: {known}")
    found[last] = setting.value
