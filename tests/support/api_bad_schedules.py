"""Bad objects: windows by clock of scenarios."""

from __future__ import annotations

from typing import Any

from tests.support.api_case import Bad, of_service
from tests.support.api_objects import GONE

_AT = "spec.scenarios[0].schedule"
_DAY = {
    "name": "day", "timeZone": "Asia/Shanghai", "from": "08:00", "to": "22:00",
    "least": {"groups": 2},
}  # fmt: skip
_CLOCK = "must be a time of day"


def _window(title: str, field: str, says: str, code: int = 422, /, **edits: Any) -> Bad:
    window = {k: v for k, v in (_DAY | edits).items() if v is not GONE}
    at = f"{_AT}[0]{field}"
    return of_service(title, {"spec.scenarios.0.schedule": [window]}, at, says, code=code)


BAD_SCHEDULES: tuple[Bad, ...] = (
    _window("a window without a name", ".name", "Required value", name=GONE),
    _window("a window in capitals", ".name", "must be lower-case letters", name="Day"),
    _window("a window without a zone", ".timeZone", "Required value", timeZone=GONE),
    _window("a zone that is none", ".timeZone", "time zone of the IANA", timeZone="Mars/Phobos"),
    _window("a zone as an offset", ".timeZone", "the name of a time zone", timeZone="+08:00"),
    _window("the server's own zone", ".timeZone", "the name of a time zone", timeZone="local/x"),
    _window("a zone as a path", ".timeZone", "the name of a time zone", timeZone="../etc/passwd"),
    _window("a continent as a zone", ".timeZone", "time zone of the IANA", timeZone="Europe/Nope"),
    _window("a zone too long", ".timeZone", "may not be more than 64", timeZone="A" * 65),
    _window("an empty zone", ".timeZone", "at least 1 chars", timeZone=""),
    _window("a window without a start", ".from", "Required value", **{"from": GONE}),
    _window("a start after midnight", ".from", _CLOCK, **{"from": "24:00"}),
    _window("a start in one digit", ".from", _CLOCK, **{"from": "8:00"}),
    _window("a start with words", ".from", _CLOCK, **{"from": "08:00 am"}),
    _window("a start with a line break", ".from", _CLOCK, **{"from": "08:00\n"}),
    _window("a start in other digits", ".from", _CLOCK, **{"from": "٠٨:٠٠"}),
    _window("a start as a number", ".from", "must be of type string", **{"from": 800}),
    _window("an end after its day", ".to", _CLOCK, to="25:00"),
    _window("an end at minute 60", ".to", _CLOCK, to="22:60"),
    _window("an end a second after the day", ".to", _CLOCK, to="24:00:01"),
    _window("a day in full", ".days[0]", '"Mon", "Tue"', days=["Monday"]),
    _window("a day as a number", ".days[0]", "must be of type string", days=[1]),
    _window("eight days", ".days", "must have at most 7 items", days=["Mon"] * 8),
    _window("a window that asks nothing", "", "least, requestsPerSecond", least=GONE),
    _window("a window of no counts", ".least", "groups, prefill, decode", least={}),
    _window("no group at least", ".least.groups", "greater than or equal to 1",
            least={"groups": 0}),
    _window("half an instance", ".least.decode", "must be of type int", least={"decode": 1.5}),
    _window("an unknown count", ".least.nodes", "unknown field", 400, least={"nodes": 1}),
    _window("no requests", ".requestsPerSecond", "must be a number from 0.001 to 1000000",
            requestsPerSecond=0),
    _window("requests as a string", ".requestsPerSecond", "must be of type number",
            requestsPerSecond="9"),
    of_service(
        "more groups in a window than may be", {"spec.scenarios.0.schedule":
        [_DAY | {"least": {"groups": 5}}]}, _AT, "least.groups must be at most groups.max",
    ),
    of_service(
        "more prefills in a window than may be", {"spec.scenarios.0.schedule":
        [_DAY | {"least": {"prefill": 7}}]}, _AT, "least.prefill must be at most ratio.prefill.max",
    ),
    of_service(
        "more decodes in a window than may be", {"spec.scenarios.0.schedule":
        [_DAY, _DAY | {"name": "peak", "least": {"decode": 7}}]}, _AT,
        "least.decode must be at most ratio.decode.max",
    ),
    of_service(
        "two windows of one name", {"spec.scenarios.0.schedule": [_DAY, _DAY]}, f"{_AT}[1]",
        "Duplicate value", parser_field=_AT,
    ),
    of_service(
        "too many windows", {"spec.scenarios.0.schedule":
        [_DAY | {"name": f"w{n}"} for n in range(17)]}, _AT, "must have at most 16 items",
    ),
)  # fmt: skip
