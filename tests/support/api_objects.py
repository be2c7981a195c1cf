"""Valid objects of the three kinds, and how to spoil them: the table of bad objects.

The same table is put to the parser (unit tests) and to a real API server (API tests), so that
both refuse the same objects at the same field.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
GONE = object()
"""As a value of an edit: remove the field."""


def role(**extra: Any) -> Object:
    """A role template."""
    instance = {"devicesPerNode": 1, "resource": "huawei.com/Ascend910"}
    return {"instance": instance, "maxConcurrency": 4} | extra


def scenario(name: str, **extra: Any) -> Object:
    """A scenario that takes requests with the header `x-scenario: <name>`."""
    return {
        "name": name,
        "match": {"headers": {"x-scenario": name}},
        "slo": {"ttft": "800ms", "handoff": "200ms", "tpot": "40ms", "attainmentPercent": 99},
        "groups": {"min": 1, "max": 4},
        "ratio": {"mode": "Auto", "prefill": {"min": 1, "max": 6}, "decode": {"min": 1, "max": 6}},
        "expected": {"promptTokens": 2000, "outputTokens": 300, "requestsPerSecond": 12},
    } | extra


def pdservice(name: str = "shop") -> Object:
    """Two scenarios, a budget, everything else at its default."""
    return {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "PDService",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "llama-3-70b"},
            "engine": {"type": "Reference", "image": "pdserve/engine:dev"},
            "prefill": role(),
            "decode": role(),
            "fabric": {"domainRef": {"name": "az1"}},
            "scenarios": [scenario("search"), scenario("chat")],
            "budget": [{"resource": "huawei.com/Ascend910", "devices": 96}],
        },
    }


def scenariogroup(name: str = "shop-chat") -> Object:
    """Without counts."""
    return {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "ScenarioGroup",
        "metadata": {"name": name},
        "spec": {
            "service": "shop",
            "scenario": "chat",
            "model": {"name": "llama-3-70b"},
            "engine": {"type": "Reference", "image": "pdserve/engine:dev"},
            "prefill": role(),
            "decode": role(),
            "fabric": {"domainRef": {"name": "az1"}},
        },
    }


def rocedomain(name: str = "az1") -> Object:
    """Two levels above the node."""
    return {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "RoCEDomain",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {"accelerator": "huawei-Ascend910"}},
            "levels": [
                {"name": "leaf", "nodeLabel": "fabric.pdserve.io/leaf", "hopCost": 10},
                {"name": "rack", "nodeLabel": "fabric.pdserve.io/rack", "hopCost": 2},
                {"name": "node", "nodeLabel": "kubernetes.io/hostname", "hopCost": 1},
            ],
        },
    }


BASES = {"PDService": pdservice, "ScenarioGroup": scenariogroup, "RoCEDomain": rocedomain}


def edited(base: Object, edits: Mapping[str, Any]) -> Object:
    """A copy of `base` with values set by path, e.g. `{"spec.scenarios.0.name": "x"}`."""
    result = copy.deepcopy(base)
    for path, value in edits.items():
        *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
        holder: Any = result
        for parent in parents:
            if isinstance(holder, dict) and parent not in holder:
                holder[parent] = {}
            holder = holder[parent]
        if value is GONE:
            del holder[last]
        else:
            holder[last] = value
    return result


_ROLE_OPTIONS = {
    "args": ["--pace", "h100"],
    "env": [{"name": "A", "value": "1"}, {"name": "B"}],
    "startupDeadlineSeconds": 60,
    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"priorityClassName": "high"}},
}
_ENGINE = {
    "type": "Reference",
    "image": "registry.example.com:5000/pdserve/engine@sha256:abc",
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": [{"name": "registry"}],
}
_SHARED = {
    "spec.model.source": {"path": "/models/llama"},
    "spec.engine": _ENGINE,
    "spec.fabric.locality": {"mode": "Required", "level": "leaf"},
    "spec.recovery": {"drainSeconds": 5, "nodeSuspectSeconds": 6},
}

FULL: Mapping[str, Object] = {
    "PDService": edited(
        pdservice(),
        _SHARED
        | {
            "spec.prefill": role(**_ROLE_OPTIONS),
            "spec.decode": role(startupDeadlineSeconds=30),
            "spec.scenarios.0.match.models": ["llama-3-70b-search"],
            "spec.scenarios.0.ratio.fixed": {"groups": 2, "prefill": 3, "decode": 4},
            "spec.scenarios.0.expected.prefixHitPercent": 40,
            "spec.gateway": {"replicas": 2, "port": 8080, "auth": {"secretRef": {"name": "keys"}}},
        },
    ),
    "ScenarioGroup": edited(
        scenariogroup(),
        _SHARED
        | {
            "spec.replicas": 2,
            "spec.prefill": role(replicas=3, startupDeadlineSeconds=30),
            "spec.decode": role(replicas=1, **_ROLE_OPTIONS),
        },
    ),
    "RoCEDomain": edited(
        rocedomain(),
        {
            "spec.levels.0.uplink": {"bandwidth": "6.4Tbps"},
            "spec.overrides": [{"level": "leaf", "value": "leaf-07", "cordoned": True}],
            "spec.missingLabelPolicy": "UnknownDomain",
            "spec.addressSource": "NodeAnnotation",
        },
    ),
}
"""Objects with every optional field."""

_VALUES: tuple[Any, ...] = (
    0, 1, 2, 4, 65, 5000, -1, 1.5, True, "", "a", "A b", "a-b", "1s", "10m", "0ms", "x/y", "/m",
    "s" * 25, "x" * 600, "kubernetes.io/hostname", "Fixed", "External", "Required", "leaf",
    "huawei.com/Ascend910", "6.4Tbps", [], ["a"], {}, {"a": "b"}, GONE,
)  # fmt: skip


def leaves(value: Any, path: str = "") -> list[str]:
    """Paths of everything below `value`, containers included."""
    if isinstance(value, dict):
        children = [(f"{path}.{k}" if path else k, v) for k, v in value.items()]
    elif isinstance(value, list):
        children = [(f"{path}.{i}", v) for i, v in enumerate(value)]
    else:
        return []
    return [p for key, child in children for p in (key, *leaves(child, key))]


def mutants(base: Object, seed: int, count: int) -> Iterator[tuple[dict[str, Any], Object]]:
    """(edits, object) with one or two values of spec replaced or removed; the same every time."""
    choose = random.Random(seed)
    paths = [p for p in leaves(base) if p.startswith("spec.") and not p.split(".")[-1].isdigit()]
    made = 0
    while made < count:
        edits = {p: choose.choice(_VALUES) for p in choose.sample(paths, choose.choice((1, 1, 2)))}
        try:
            yield edits, edited(base, edits)
        except (KeyError, IndexError, TypeError):
            continue  # the first edit took away what the second is below
        made += 1


@dataclass(frozen=True, slots=True)
class Bad:
    """One thing wrong: the API server answers at `field` and says `says` among other words.

    `parser_field`: where the parser reports it, when that is another place.
    """

    name: str
    kind: str
    edits: Mapping[str, Any]
    field: str
    says: str
    parser_field: str = ""
    code: int = field(default=422)

    @property
    def object(self) -> Object:
        """The bad object."""
        return edited(BASES[self.kind](), self.edits)


_S0 = "spec.scenarios.0"
_P0 = "spec.scenarios[0]"
_DURATION = "must be a positive duration up to 10m, such as 800ms or 1.5s"


def _service(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "PDService", edits, at, says, **extra)


def _group(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "ScenarioGroup", edits, at, says, **extra)


def _domain(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "RoCEDomain", edits, at, says, **extra)


_FIXED = {"groups": 2, "prefill": 2, "decode": 2}

BAD_SERVICES = (
    _service("name of 31 characters", {"metadata.name": "a" * 31}, "metadata.name", "at most 30"),
    _service("name with a dot", {"metadata.name": "a.b"}, "metadata.name", "lower-case letters"),
    _service(
        "name starting with a digit", {"metadata.name": "1a"}, "metadata.name", "starting with a"
    ),
    _service("no model", {"spec.model": GONE}, "spec.model", "Required value"),
    _service(
        "model name with a space",
        {"spec.model.name": "llama 3"},
        "spec.model.name",
        "must be a model name: letters, digits",
    ),
    _service(
        "relative weights path",
        {"spec.model.source": {"path": "models/llama"}},
        "spec.model.source.path",
        "must be an absolute path such as /models/llama",
    ),
    _service(
        "unknown engine", {"spec.engine.type": "VLLM"}, "spec.engine.type", 'values: "Reference"'
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
        "greater than or equal to 1",
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
        "budget of a resource nobody uses",
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
    _service("misspelt field", {"spec.scenario": []}, "spec.scenario", "unknown field", code=400),
)

BAD_GROUPS = (
    _group("name of 52 characters", {"metadata.name": "a" * 52}, "metadata.name", "at most 51"),
    _group(
        "service of 31 characters",
        {"spec.service": "a" * 31},
        "spec.service",
        "may not be more than 30",
    ),
    _group("no scenario", {"spec.scenario": GONE}, "spec.scenario", "Required value"),
    _group("negative groups", {"spec.replicas": -1}, "spec.replicas", "equal to 0"),
    _group("too many groups", {"spec.replicas": 65}, "spec.replicas", "equal to 64"),
    _group(
        "no prefill instance", {"spec.prefill.replicas": 0}, "spec.prefill.replicas", "equal to 1"
    ),
    _group(
        "too many decode instances",
        {"spec.decode.replicas": 65},
        "spec.decode.replicas",
        "equal to 64",
    ),
    _group(
        "the model's name as an argument",
        {"spec.decode.args": ["--model-name", "x"]},
        "spec.decode.args",
        "model.name for the model's name",
    ),
    _group(
        "a template beside metadata and spec",
        {"spec.decode.template": {"status": {}}},
        "spec.decode.template.status",
        "unknown field",
        code=400,
    ),
)

_LEVELS = "spec.levels"

BAD_DOMAINS = (
    _domain("no selector", {"spec.nodeSelector": GONE}, "spec.nodeSelector", "Required value"),
    _domain(
        "an empty selector",
        {"spec.nodeSelector": {"matchLabels": {}}},
        "spec.nodeSelector.matchLabels",
        "should have at least 1 properties",
    ),
    _domain(
        "a label key with a space",
        {"spec.nodeSelector": {"matchLabels": {"a b": "c"}}},
        "spec.nodeSelector.matchLabels",
        "every key must be a label key such as",
    ),
    _domain("no level", {_LEVELS: []}, _LEVELS, "at least 1 items"),
    _domain(
        "nine levels",
        {_LEVELS: [{"name": f"l{i}", "nodeLabel": f"x/l{i}", "hopCost": 1} for i in range(9)]},
        _LEVELS,
        "must have at most 8 items",
    ),
    _domain(
        "a level's name twice",
        {"spec.levels.1.name": "leaf"},
        "spec.levels[1]",
        "Duplicate value",
        parser_field=_LEVELS,
    ),
    _domain(
        "a label twice",
        {"spec.levels.1.nodeLabel": "fabric.pdserve.io/leaf"},
        _LEVELS,
        "every level needs a nodeLabel of its own",
    ),
    _domain(
        "the node as an outer level",
        {
            "spec.levels.0.nodeLabel": "kubernetes.io/hostname",
            "spec.levels.2.nodeLabel": "fabric.pdserve.io/leaf",
        },
        _LEVELS,
        "must be the last (innermost) level",
    ),
    _domain(
        "levels from the innermost",
        {"spec.levels.0.hopCost": 1},
        _LEVELS,
        "levels are listed from the outermost to the innermost",
    ),
    _domain(
        "a negative cost",
        {"spec.levels.2.hopCost": -1},
        "spec.levels[2].hopCost",
        "greater than or equal to 0",
    ),
    _domain(
        "bandwidth in bytes",
        {"spec.levels.0.uplink": {"bandwidth": "800GB"}},
        "spec.levels[0].uplink.bandwidth",
        "must be a positive bandwidth, such as 400Gbps or 6.4Tbps",
    ),
    _domain(
        "no bandwidth",
        {"spec.levels.0.uplink": {"bandwidth": "0Gbps"}},
        "spec.levels[0].uplink.bandwidth",
        "must be a positive bandwidth",
    ),
    _domain(
        "an override of no level",
        {"spec.overrides": [{"level": "spine", "value": "s1", "cordoned": True}]},
        "spec.overrides",
        "level must be the name of one of spec.levels",
    ),
    _domain(
        "an override twice",
        {"spec.overrides": [{"level": "leaf", "value": "a", "cordoned": c} for c in (True, False)]},
        "spec.overrides[1]",
        "Duplicate value",
        parser_field="spec.overrides",
    ),
    _domain(
        "an override without a decision",
        {"spec.overrides": [{"level": "leaf", "value": "a"}]},
        "spec.overrides[0].cordoned",
        "Required value",
    ),
    _domain(
        "cordoned as a number",
        {"spec.overrides": [{"level": "leaf", "value": "a", "cordoned": 1}]},
        "spec.overrides[0].cordoned",
        "must be of type boolean",
    ),
    _domain(
        "unknown policy",
        {"spec.missingLabelPolicy": "Ignore"},
        "spec.missingLabelPolicy",
        '"Exclude", "UnknownDomain"',
    ),
    _domain(
        "unknown address source",
        {"spec.addressSource": "Multus"},
        "spec.addressSource",
        '"NodeAnnotation"',
    ),
)

_ONE = {"groups": 1, "prefill": 1, "decode": 1}

GOOD: Mapping[str, Object] = {
    name: edited(pdservice(), edits)
    for name, edits in {
        "longest names": {"metadata.name": "a" * 30, f"{_S0}.name": "s" * 20},
        "one catch-all scenario": {"spec.scenarios": [scenario("all", match={})]},
        "a catch-all at the end": {"spec.scenarios.1.match": {"models": []}},
        "no match at the end": {"spec.scenarios.1.match": GONE},
        "match by model": {f"{_S0}.match": {"models": ["llama-3-70b-search"]}},
        "no budget": {"spec.budget": []},
        "budget exactly the minimum": {"spec.budget.0.devices": 4},
        "fixed kept in Auto": {f"{_S0}.ratio.fixed": _ONE},
        "mode Fixed": {f"{_S0}.ratio.mode": "Fixed", f"{_S0}.ratio.fixed": _ONE},
        "locality by level": {"spec.fabric.locality": {"mode": "Required", "level": "leaf"}},
        "32 scenarios": {"spec.scenarios": [scenario(f"s{i}") for i in range(32)]},
        "extreme durations": {f"{_S0}.slo.ttft": "10m", f"{_S0}.slo.tpot": "0.001s"},
        "arguments that begin alike": {"spec.prefill.args": ["--slots-log=9", "--pace", ""]},
        "any pod template": {
            "spec.decode.template": {
                "metadata": {"annotations": {"a": "b"}},
                "spec": {"tolerations": [{"operator": "Exists"}], "anything": {"nested": [1]}},
            }
        },
    }.items()
}
"""Unusual, but right."""

BAD = (*BAD_SERVICES, *BAD_GROUPS, *BAD_DOMAINS)
