"""Bad PDServices: part of the table in `api_bad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.api_case import Bad
from tests.support.api_objects import GONE, scenario

_S0 = "spec.scenarios.0"
_P0 = "spec.scenarios[0]"
_DURATION = "must be a positive duration up to 10m, such as 800ms, 1.5s or 1m30s"
_FIXED = {"groups": 2, "prefill": 2, "decode": 2}


def _service(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "PDService", edits, at, says, **extra)


BAD_SERVICES = (
    _service("name of 31 characters", {"metadata.name": "a" * 31}, "metadata.name", "at most 30"),
    _service("name with a dot", {"metadata.name": "a.b"}, "metadata.name", "lower-case letters"),
    _service(
        "name starting with a digit", {"metadata.name": "1a"}, "metadata.name", "starting with a"
    ),
    _service(
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
    _service("no model", {"spec.model": GONE}, "spec.model", "Required value"),
    _service(
        "model name that ends with a space",
        {"spec.model.name": "llama 3 "},
        "spec.model.name",
        "must be a model name: printable text",
    ),
    _service(
        "model name with a line break",
        {"spec.model.name": "llama\n3"},
        "spec.model.name",
        "must be a model name: printable text",
    ),
    _service(
        "match of a model name with a control character",
        {f"{_S0}.match": {"models": ["llama\x7f"]}},
        f"{_P0}.match.models[0]",
        "must be a model name: printable text",
    ),
    _service(
        "duration with a space",
        {f"{_S0}.slo.ttft": "800 ms"},
        f"{_P0}.slo.ttft",
        _DURATION,
    ),
    _service(
        "durations that add up to too much",
        {f"{_S0}.slo.ttft": "9m61s"},
        f"{_P0}.slo.ttft",
        _DURATION,
    ),
    _service(
        "traffic as a string",
        {f"{_S0}.expected.requestsPerSecond": "0.2"},
        f"{_P0}.expected.requestsPerSecond",
        "must be of type number",
    ),
    _service(
        "relative weights path",
        {"spec.model.source": {"path": "models/llama"}},
        "spec.model.source.path",
        "must be an absolute path such as /models/llama",
    ),
    *(
        _service(
            f"engine type: {what}",
            {"spec.engine.type": name},
            "spec.engine.type",
            "must be letters, digits and '-', starting with a letter",
        )
        for what, name in (
            ("a space", "My Engine"),
            ("a digit first", "2Fast"),
            ("a path", "../engines"),
            ("a module", "os.path"),
            ("a line end", "Mine\n"),
        )
    ),
    _service("no engine type", {"spec.engine.type": ""}, "spec.engine.type", "at least 1 chars"),
    _service(
        "long engine type", {"spec.engine.type": "E" * 64}, "spec.engine.type", "may not be more"
    ),
    _service(
        "engine type as a number", {"spec.engine.type": 7}, "spec.engine.type", "of type string"
    ),
    _service("empty image", {"spec.engine.image": ""}, "spec.engine.image", "at least 1 chars"),
    _service(
        "image with a space",
        {"spec.engine.image": "engine :1"},
        "spec.engine.image",
        "must be an image reference such as",
    ),
    _service(
        "unknown pull policy",
        {"spec.engine.imagePullPolicy": "Sometimes"},
        "spec.engine.imagePullPolicy",
        '"Always", "IfNotPresent", "Never"',
    ),
    _service(
        "a pull secret twice",
        {"spec.engine.imagePullSecrets": [{"name": "a"}, {"name": "a"}]},
        "spec.engine.imagePullSecrets[1]",
        "Duplicate value",
        parser_field="spec.engine.imagePullSecrets",
    ),
    _service(
        "no devices",
        {"spec.prefill.instance.devicesPerNode": 0},
        "spec.prefill.instance.devicesPerNode",
        "greater than or equal to 1",
    ),
    _service(
        "devices as a fraction",
        {"spec.prefill.instance.devicesPerNode": 1.5},
        "spec.prefill.instance.devicesPerNode",
        "must be of type int32",
    ),
    _service(
        "resource without a domain",
        {"spec.decode.instance.resource": "npu"},
        "spec.decode.instance.resource",
        "must be an extended resource such as huawei.com/Ascend910",
    ),
    _service(
        "no slots",
        {"spec.decode.maxConcurrency": 0},
        "spec.decode.maxConcurrency",
        "greater than or equal to 1",
    ),
    _service(
        "too many slots",
        {"spec.decode.maxConcurrency": 5000},
        "spec.decode.maxConcurrency",
        "less than or equal to 4096",
    ),
    _service(
        "slots as text",
        {"spec.decode.maxConcurrency": "4"},
        "spec.decode.maxConcurrency",
        "must be of type integer",
    ),
    _service(
        "an argument of the operator",
        {"spec.prefill.args": ["--slots=9"]},
        "spec.prefill.args",
        "use maxConcurrency for slots",
    ),
    _service(
        "an environment variable of the operator",
        {"spec.prefill.env": [{"name": "PDSERVE_ROLE", "value": "decode"}]},
        "spec.prefill.env[0].name",
        "use another name",
    ),
    _service(
        "an environment variable with a dash",
        {"spec.prefill.env": [{"name": "MY-VAR", "value": "x"}]},
        "spec.prefill.env[0].name",
        "must be letters, digits and '_'",
    ),
    _service(
        "no startup deadline",
        {"spec.prefill.startupDeadlineSeconds": 0},
        "spec.prefill.startupDeadlineSeconds",
        "greater than or equal to 1",
    ),
    _service(
        "no fabric name",
        {"spec.fabric": {"domainRef": {}}},
        "spec.fabric.domainRef.name",
        "Required value",
    ),
    _service(
        "required locality without a level",
        {"spec.fabric.locality": {"mode": "Required"}},
        "spec.fabric.locality",
        "needs level: the name of the RoCEDomain level",
    ),
    _service(
        "unknown locality",
        {"spec.fabric.locality": {"mode": "Strict"}},
        "spec.fabric.locality.mode",
        '"Preferred", "Required"',
    ),
    _service("no scenario", {"spec.scenarios": []}, "spec.scenarios", "at least 1 items"),
    _service(
        "too many scenarios",
        {"spec.scenarios": [scenario(f"s{i}") for i in range(33)]},
        "spec.scenarios",
        "must have at most 32 items",
    ),
    _service(
        "scenario name twice",
        {"spec.scenarios.1.name": "search"},
        "spec.scenarios[1]",
        "Duplicate value",
        parser_field="spec.scenarios",
    ),
    _service(
        "scenario name of 21 characters",
        {f"{_S0}.name": "s" * 21},
        f"{_P0}.name",
        "may not be more than 20",
    ),
    _service(
        "scenario name in capitals",
        {f"{_S0}.name": "Search"},
        f"{_P0}.name",
        "must be lower-case letters, digits and '-'",
    ),
    _service(
        "a catch-all before the last scenario",
        {f"{_S0}.match": GONE},
        "spec.scenarios",
        "every scenario but the last needs match.models or match.headers",
    ),
    _service(
        "an empty match before the last scenario",
        {f"{_S0}.match": {"models": [], "headers": {}}},
        "spec.scenarios",
        "every scenario but the last needs match.models or match.headers",
    ),
    _service(
        "two equal matches",
        {"spec.scenarios.1.match": {"headers": {"x-scenario": "search"}}},
        "spec.scenarios",
        "needs a match of its own",
    ),
    _service(
        "header name in capitals",
        {f"{_S0}.match.headers": {"X-Scenario": "search"}},
        f"{_P0}.match.headers",
        "a header name in lower case",
    ),
    _service("ttft without a unit", {f"{_S0}.slo.ttft": "800"}, f"{_P0}.slo.ttft", _DURATION),
    _service("ttft of zero", {f"{_S0}.slo.ttft": "0.0s"}, f"{_P0}.slo.ttft", _DURATION),
    _service("negative tpot", {f"{_S0}.slo.tpot": "-40ms"}, f"{_P0}.slo.tpot", _DURATION),
    _service("ttft of an hour", {f"{_S0}.slo.ttft": "60m"}, f"{_P0}.slo.ttft", _DURATION),
    _service("no handoff target", {f"{_S0}.slo.handoff": GONE}, f"{_P0}.slo.handoff", "Required"),
    _service(
        "ttft as a number",
        {f"{_S0}.slo.ttft": 800},
        f"{_P0}.slo.ttft",
        "must be of type string",
    ),
    _service(
        "attainment of nothing",
        {f"{_S0}.slo.attainmentPercent": 0},
        f"{_P0}.slo.attainmentPercent",
        "greater than or equal to 1",
    ),
    _service(
        "attainment above all",
        {f"{_S0}.slo.attainmentPercent": 101},
        f"{_P0}.slo.attainmentPercent",
        "less than or equal to 100",
    ),
    _service(
        "groups min above max",
        {f"{_S0}.groups": {"min": 5, "max": 2}},
        f"{_P0}.groups.min",
        "min must be at most max",
    ),
    _service(
        "no P/D group at least",
        {f"{_S0}.groups.min": 0},
        f"{_P0}.groups.min",
        "greater than or equal to 1",
    ),
    _service(
        "too many P/D groups",
        {f"{_S0}.groups.max": 65},
        f"{_P0}.groups.max",
        "less than or equal to 64",
    ),
    _service(
        "prefill min above max",
        {f"{_S0}.ratio.prefill": {"min": 3, "max": 2}},
        f"{_P0}.ratio.prefill.min",
        "min must be at most max",
    ),
    _service(
        "too many decode instances",
        {f"{_S0}.ratio.decode.max": 65},
        f"{_P0}.ratio.decode.max",
        "less than or equal to 64",
    ),
    _service(
        "unknown ratio mode",
        {f"{_S0}.ratio.mode": "auto"},
        f"{_P0}.ratio.mode",
        '"Auto", "Advise", "Fixed", "External"',
    ),
    _service(
        "Fixed without counts",
        {f"{_S0}.ratio.mode": "Fixed"},
        f"{_P0}.ratio",
        "mode Fixed needs fixed: {groups, prefill, decode}",
    ),
    _service(
        "fixed prefill out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"prefill": 7}},
        f"{_P0}.ratio.fixed",
        "fixed.prefill must be within ratio.prefill.min and ratio.prefill.max",
    ),
    _service(
        "fixed decode out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"decode": 7}},
        f"{_P0}.ratio.fixed",
        "fixed.decode must be within ratio.decode.min and ratio.decode.max",
    ),
    _service(
        "fixed groups out of bounds",
        {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _FIXED | {"groups": 5}},
        f"{_P0}.ratio.fixed",
        "fixed.groups must be within groups.min and groups.max",
    ),
    _service(
        "prefix hits above all",
        {f"{_S0}.expected.prefixHitPercent": 101},
        f"{_P0}.expected.prefixHitPercent",
        "less than or equal to 100",
    ),
    _service(
        "no expected requests",
        {f"{_S0}.expected.requestsPerSecond": 0},
        f"{_P0}.expected.requestsPerSecond",
        "must be a number from 0.001 to 1000000",
    ),
    _service(
        "more instances than a route table holds",
        {
            f"{_S0}.groups.max": 64,
            f"{_S0}.ratio.prefill.max": 64,
            f"{_S0}.ratio.decode.max": 64,
        },
        "spec.scenarios",
        "must be at most 2048 instances; lower a max",
    ),
    _service(
        "budget without end",
        {"spec.budget.0.devices": 1_000_001},
        "spec.budget[0].devices",
        "less than or equal to 1000000",
    ),
    _service(
        "budget below the minimum",
        {"spec.budget.0.devices": 3},
        "spec.budget",
        "devices must be enough for every scenario at its minimum",
    ),
    _service(
        "budget of a resource that no role uses",
        {"spec.budget.0.resource": "nvidia.com/gpu"},
        "spec.budget",
        "must name a resource that prefill.instance or decode.instance requests",
    ),
    _service(
        "budget twice",
        {"spec.budget": [{"resource": "huawei.com/Ascend910", "devices": n} for n in (96, 9)]},
        "spec.budget[1]",
        "Duplicate value",
        parser_field="spec.budget",
    ),
    _service(
        "negative drain",
        {"spec.recovery": {"drainSeconds": -1}},
        "spec.recovery.drainSeconds",
        "greater than or equal to 0",
    ),
    _service(
        "a node is suspect at once",
        {"spec.recovery": {"nodeSuspectSeconds": 0}},
        "spec.recovery.nodeSuspectSeconds",
        "greater than or equal to 1",
    ),
    _service(
        "network peer of nothing",
        {"spec.networkPolicy": {"clients": [{}]}},
        "spec.networkPolicy.clients[0]",
        "needs either cidr, or namespaceLabels, podLabels or both",
    ),
    _service(
        "network peer of both kinds",
        {"spec.networkPolicy": {"metrics": [{"cidr": "10.0.0.0/8", "podLabels": {"a": "b"}}]}},
        "spec.networkPolicy.metrics[0]",
        "needs either cidr, or namespaceLabels, podLabels or both",
    ),
    _service(
        "network peer without a prefix",
        {"spec.networkPolicy": {"clients": [{"cidr": "10.0.0.1"}]}},
        "spec.networkPolicy.clients[0].cidr",
        "a block of addresses such as 10.0.0.0/8",
    ),
    _service(
        "network peer with an empty selector",
        {"spec.networkPolicy": {"clients": [{"podLabels": {}}]}},
        "spec.networkPolicy.clients[0].podLabels",
        "at least 1",
    ),
    _service(
        "17 network peers",
        {"spec.networkPolicy": {"clients": [{"cidr": "10.0.0.0/8"}] * 17}},
        "spec.networkPolicy.clients",
        "at most 16 items",
    ),
    _service(
        "no gateway", {"spec.gateway": {"replicas": 0}}, "spec.gateway.replicas", "equal to 1"
    ),
    _service(
        "gateway port", {"spec.gateway": {"port": 70000}}, "spec.gateway.port", "equal to 65535"
    ),
    _service(
        "secret name",
        {"spec.gateway": {"auth": {"secretRef": {"name": "Keys"}}}},
        "spec.gateway.auth.secretRef.name",
        "must be the name of an object",
    ),
    _service(
        "certificate without a Secret",
        {"spec.gateway": {"tls": {}}},
        "spec.gateway.tls.secretRef",
        "Required value",
    ),
    _service(
        "tiny body limit",
        {"spec.gateway": {"maxBodyBytes": 1}},
        "spec.gateway.maxBodyBytes",
        "greater than or equal to 1024",
    ),
    _service(
        "origin with a path",
        {"spec.gateway": {"cors": {"origins": ["https://a.example/x"]}}},
        "spec.gateway.cors.origins[0]",
        "must be * or an origin such as",
    ),
    _service(
        "no origin",
        {"spec.gateway": {"cors": {"origins": []}}},
        "spec.gateway.cors.origins",
        "at least 1 items",
    ),
    _service(
        "an amount that is none",
        {"spec.gateway": {"resources": {"limits": {"memory": "1 GB"}}}},
        "spec.gateway.resources.limits[memory]",
        "must be a quantity such as",
        parser_field="spec.gateway.resources.limits",
    ),
    _service(
        "a template that is a list",
        {"spec.gateway": {"template": []}},
        "spec.gateway.template",
        "must be of type object",
    ),
    _service("misspelt field", {"spec.scenario": []}, "spec.scenario", "unknown field", code=400),
)
