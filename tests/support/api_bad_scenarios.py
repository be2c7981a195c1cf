"""Bad scenarios of a PDService: part of the table in `api_bad`."""

from __future__ import annotations

from tests.support.api_case import of_service
from tests.support.api_objects import GONE, scenario

_S0 = "spec.scenarios.0"
_P0 = "spec.scenarios[0]"
_DURATION = "must be a positive duration up to 10m, such as 800ms, 1.5s or 1m30s"
_FIXED = {"groups": 2, "prefill": 2, "decode": 2}

BAD_SCENARIOS = (
    of_service(
        "more match text than a route table holds",
        {
            "spec.scenarios": [
                scenario(f"s{n}", match={"models": [f"{n}-{m}-" + "m" * 240 for m in range(16)]})
                for n in range(5)
            ]
        },
        "spec.scenarios",
        "at most 16384 characters",
    ),
    of_service(
        "match of a model name with a control character",
        {f"{_S0}.match": {"models": ["llama\x7f"]}},
        f"{_P0}.match.models[0]",
        "must be a model name: printable text",
    ),
    of_service(
        "duration with a space",
        {f"{_S0}.slo.ttft": "800 ms"},
        f"{_P0}.slo.ttft",
        _DURATION,
    ),
    of_service(
        "durations that add up to too much",
        {f"{_S0}.slo.ttft": "9m61s"},
        f"{_P0}.slo.ttft",
        _DURATION,
    ),
    of_service(
        "traffic as a string",
        {f"{_S0}.expected.requestsPerSecond": "0.2"},
        f"{_P0}.expected.requestsPerSecond",
        "must be of type number",
    ),
    of_service("no scenario", {"spec.scenarios": []}, "spec.scenarios", "at least 1 items"),
    of_service(
        "too many scenarios",
        {"spec.scenarios": [scenario(f"s{i}") for i in range(33)]},
        "spec.scenarios",
        "must have at most 32 items",
    ),
    of_service(
        "scenario name twice",
        {"spec.scenarios.1.name": "search"},
        "spec.scenarios[1]",
        "Duplicate value",
        parser_field="spec.scenarios",
    ),
    of_service(
        "scenario name of 21 characters",
        {f"{_S0}.name": "s" * 21},
        f"{_P0}.name",
        "may not be more than 20",
    ),
    of_service(
        "scenario name in capitals",
        {f"{_S0}.name": "Search"},
        f"{_P0}.name",
        "must be lower-case letters, digits and '-'",
    ),
    of_service(
        "a catch-all before the last scenario",
        {f"{_S0}.match": GONE},
        "spec.scenarios",
        "every scenario but the last needs match.models or match.headers",
    ),
    of_service(
        "an empty match before the last scenario",
        {f"{_S0}.match": {"models": [], "headers": {}}},
        "spec.scenarios",
        "every scenario but the last needs match.models or match.headers",
    ),
    of_service(
        "two equal matches",
        {"spec.scenarios.1.match": {"headers": {"x-scenario": "search"}}},
        "spec.scenarios",
        "needs a match of its own",
    ),
    of_service(
        "header name in capitals",
        {f"{_S0}.match.headers": {"X-Scenario": "search"}},
        f"{_P0}.match.headers",
        "a header name in lower case",
    ),
    of_service("ttft without a unit", {f"{_S0}.slo.ttft": "800"}, f"{_P0}.slo.ttft", _DURATION),
    of_service("ttft of zero", {f"{_S0}.slo.ttft": "0.0s"}, f"{_P0}.slo.ttft", _DURATION),
    of_service("negative tpot", {f"{_S0}.slo.tpot": "-40ms"}, f"{_P0}.slo.tpot", _DURATION),
    of_service("ttft of an hour", {f"{_S0}.slo.ttft": "60m"}, f"{_P0}.slo.ttft", _DURATION),
    of_service("no handoff target", {f"{_S0}.slo.handoff": GONE}, f"{_P0}.slo.handoff", "Required"),
    of_service(
        "ttft as a number",
        {f"{_S0}.slo.ttft": 800},
        f"{_P0}.slo.ttft",
        "must be of type string",
    ),
    of_service(
        "attainment of nothing",
        {f"{_S0}.slo.attainmentPercent": 0},
        f"{_P0}.slo.attainmentPercent",
        "greater than or equal to 1",
    ),
    of_service(
        "attainment above all",
        {f"{_S0}.slo.attainmentPercent": 101},
        f"{_P0}.slo.attainmentPercent",
        "less than or equal to 100",
    ),
    of_service(
        "groups min above max",
        {f"{_S0}.groups": {"min": 5, "max": 2}},
        f"{_P0}.groups.min",
        "min must be at most max",
    ),
    of_service(
        "no P/D group at least",
        {f"{_S0}.groups.min": 0},
        f"{_P0}.groups.min",
        "greater than or equal to 1",
    ),
    of_service(
        "too many P/D groups",
        {f"{_S0}.groups.max": 65},
        f"{_P0}.groups.max",
        "less than or equal to 64",
    ),
    of_service(
        "prefill min above max",
        {f"{_S0}.ratio.prefill": {"min": 3, "max": 2}},
        f"{_P0}.ratio.prefill.min",
        "min must be at most max",
    ),
    of_service(
        "too many decode instances",
        {f"{_S0}.ratio.decode.max": 65},
        f"{_P0}.ratio.decode.max",
        "less than or equal to 64",
    ),
    of_service(
        "unknown ratio mode",
        {f"{_S0}.ratio.mode": "auto"},
        f"{_P0}.ratio.mode",
        '"Auto", "Advise", "Approve", "Fixed", "External"',
    ),
    of_service(
        "Fixed without counts",
        {f"{_S0}.ratio.mode": "Fixed"},
        f"{_P0}.ratio",
        "mode Fixed needs fixed: {groups, prefill, decode}",
    ),
    of_service(
        "fixed prefill out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"prefill": 7}},
        f"{_P0}.ratio.fixed",
        "fixed.prefill must be within ratio.prefill.min and ratio.prefill.max",
    ),
    of_service(
        "fixed decode out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"decode": 7}},
        f"{_P0}.ratio.fixed",
        "fixed.decode must be within ratio.decode.min and ratio.decode.max",
    ),
    of_service(
        "fixed groups out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"groups": 5}},
        f"{_P0}.ratio.fixed",
        "fixed.groups must be within groups.min and groups.max",
    ),
    of_service(
        "prefix hits above all",
        {f"{_S0}.expected.prefixHitPercent": 101},
        f"{_P0}.expected.prefixHitPercent",
        "less than or equal to 100",
    ),
    of_service(
        "unknown prefix affinity",
        {f"{_S0}.routing": {"prefixAffinity": "On"}},
        f"{_P0}.routing.prefixAffinity",
        '"Auto", "Off"',
    ),
    of_service(
        "prefix affinity as a truth value",
        {f"{_S0}.routing": {"prefixAffinity": False}},
        f"{_P0}.routing.prefixAffinity",
        '"Auto", "Off"',
    ),
    of_service(
        "unknown field of the routing",
        {f"{_S0}.routing": {"prefix": "Auto"}},
        f"{_P0}.routing.prefix",
        "unknown field",
        code=400,
    ),
    *(
        of_service(f"spares: {value!r}", {f"{_S0}.spares": value}, f"{_P0}.spares", said)
        for value, said in (
            (-1, "greater than or equal to 0"),
            (9, "less than or equal to 8"),
            (10**30, "must be of type"),
            ("1", "must be of type integer"),
            (True, "must be of type"),
            (1.5, "must be of type"),
        )
    ),
    of_service(
        "unknown mode of local prefills",
        {f"{_S0}.routing": {"localPrefill": {"mode": "On"}}},
        f"{_P0}.routing.localPrefill.mode",
        '"Off", "Auto", "Fixed"',
    ),
    of_service(
        "no mode of local prefills",
        {f"{_S0}.routing": {"localPrefill": {"maxTokens": 64}}},
        f"{_P0}.routing.localPrefill.mode",
        "Required value",
    ),
    of_service(
        "fixed local prefills without a length",
        {f"{_S0}.routing": {"localPrefill": {"mode": "Fixed"}}},
        f"{_P0}.routing.localPrefill",
        "mode Fixed needs maxTokens",
    ),
    of_service(
        "local prefills of nothing",
        {f"{_S0}.routing": {"localPrefill": {"mode": "Fixed", "maxTokens": 0}}},
        f"{_P0}.routing.localPrefill.maxTokens",
        "greater than or equal to 1",
    ),
    of_service(
        "local prefills of a text",
        {f"{_S0}.routing": {"localPrefill": {"mode": "Fixed", "maxTokens": "64"}}},
        f"{_P0}.routing.localPrefill.maxTokens",
        "integer",
    ),
    of_service(
        "local prefills longer than any prompt",
        {f"{_S0}.routing": {"localPrefill": {"mode": "Fixed", "maxTokens": 10_000_001}}},
        f"{_P0}.routing.localPrefill.maxTokens",
        "less than or equal to 10000000",
    ),
    of_service(
        "local prefills as a word",
        {f"{_S0}.routing": {"localPrefill": "Auto"}},
        f"{_P0}.routing.localPrefill",
        "object",
    ),
    of_service(
        "limits that limit nothing",
        {f"{_S0}.limits": {}},
        f"{_P0}.limits",
        "at least one of requestsPerMinute, tokensPerMinute, concurrentRequests",
    ),
    of_service(
        "no request a minute",
        {f"{_S0}.limits": {"requestsPerMinute": 0}},
        f"{_P0}.limits.requestsPerMinute",
        "greater than or equal to 1",
    ),
    of_service(
        "half a request a minute",
        {f"{_S0}.limits": {"requestsPerMinute": 1.5}},
        f"{_P0}.limits.requestsPerMinute",
        "must be of type int",
    ),
    of_service(
        "more tokens than a limit counts",
        {f"{_S0}.limits": {"tokensPerMinute": 1_000_000_001}},
        f"{_P0}.limits.tokensPerMinute",
        "less than or equal to 1000000000",
    ),
    of_service(
        "tokens as a string",
        {f"{_S0}.limits": {"tokensPerMinute": "1000"}},
        f"{_P0}.limits.tokensPerMinute",
        "must be of type integer",
    ),
    of_service(
        "fewer than no requests at once",
        {f"{_S0}.limits": {"concurrentRequests": -1}},
        f"{_P0}.limits.concurrentRequests",
        "greater than or equal to 1",
    ),
    of_service(
        "an unknown limit",
        {f"{_S0}.limits": {"requestsPerSecond": 5}},
        f"{_P0}.limits.requestsPerSecond",
        "unknown field",
        code=400,
    ),
    of_service(
        "no expected requests",
        {f"{_S0}.expected.requestsPerSecond": 0},
        f"{_P0}.expected.requestsPerSecond",
        "must be a number from 0.001 to 1000000",
    ),
    of_service(
        "more instances than a route table holds",
        {
            f"{_S0}.groups.max": 64,
            f"{_S0}.ratio.prefill.max": 64,
            f"{_S0}.ratio.decode.max": 64,
        },
        "spec.scenarios",
        "must be at most 2048 instances; lower a max",
    ),
)
