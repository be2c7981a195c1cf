"""Valid objects of the three kinds, and how to change them. `api_bad` and `api_bad_services` are
the tables of bad ones.

All are put to the parser (unit tests) and to a real API server (API tests).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any, cast

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
            "engine": {"type": "Reference", "image": "pdserve/engine:0.1.0"},
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
            "engine": {"type": "Reference", "image": "pdserve/engine:0.1.0"},
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
_NODES = {"spec.prefill.instance.nodes": 1, "spec.decode.instance.nodes": 2}
_ENGINE = {
    "type": "Reference",
    "image": "registry.example.com:5000/pdserve/engine@sha256:abc",
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": [{"name": "registry"}],
}
_SHARED = {
    "spec.model.source": {
        "path": "/models/llama",
        "uri": {
            "url": "https://models.example.com/llama/SHA256SUMS",
            "sha256": "a" * 64,
            "content": "Manifest",
            "secretRef": {"name": "hub"},
            "maxGigabytes": 200,
        },
    },
    "spec.engine": _ENGINE,
    "spec.fabric.locality": {"mode": "Required", "level": "leaf"},
    "spec.recovery": {"drainSeconds": 5, "nodeSuspectSeconds": 6},
    "spec.rollout": {
        "order": "DeleteFirst",
        "maxUnavailableGroups": 2,
        "canaryGroups": 1,
        "promotedRevision": "3f09ab12",
        "progressDeadlineSeconds": 600,
        "scenarios": "Together",
        "allowOutage": True,
        "paused": True,
    },
}

FULL: Mapping[str, Object] = {
    "PDService": edited(
        pdservice(),
        _SHARED
        | {
            "spec.prefill": role(**_ROLE_OPTIONS),
            "spec.decode": role(startupDeadlineSeconds=30),
            **_NODES,
            "spec.scenarios.0.match.models": ["llama-3-70b-search"],
            "spec.scenarios.0.ratio.fixed": {"groups": 2, "prefill": 3, "decode": 4},
            "spec.scenarios.0.ratio.approvalSeconds": 60,
            "spec.scenarios.0.ratio.answer": {"proposal": "3f09ab12", "verdict": "Reject"},
            "spec.scenarios.0.ratio.hold": {
                "until": "2026-12-31T23:59:59.5Z",
                "counts": {"groups": 9, "prefill": 9, "decode": 9},
            },
            "spec.scenarios.0.expected.prefixHitPercent": 40,
            "spec.scenarios.0.spares": 1,
            "spec.scenarios.1.spares": 0,
            "spec.scenarios.0.schedule": [
                {
                    "name": "day",
                    "timeZone": "America/Argentina/Buenos_Aires",
                    "days": ["Mon", "Fri"],
                    "from": "08:00",
                    "to": "24:00",
                    "least": {"groups": 4, "prefill": 6, "decode": 1},
                    "requestsPerSecond": 0.5,
                },
                {
                    "name": "night",
                    "timeZone": "UTC",
                    "from": "23:59:59",
                    "to": "00:00",
                    "least": {"decode": 6},
                },
            ],
            "spec.scenarios.0.routing": {
                "prefixAffinity": "Off",
                "localPrefill": {"mode": "Fixed", "maxTokens": 64},
            },
            "spec.scenarios.0.limits": {
                "requestsPerMinute": 600,
                "tokensPerMinute": 90000,
                "concurrentRequests": 50,
            },
            "spec.networkPolicy": {
                "clients": [{"cidr": "10.0.0.0/8"}, {"namespaceLabels": {"team": "a"}}],
                "metrics": [{"podLabels": {"app": "prometheus"}}],
            },
            "spec.gateway": {
                "replicas": 2,
                "port": 8080,
                "auth": {"secretRef": {"name": "keys"}},
                "tls": {"secretRef": {"name": "certificate"}},
                "maxBodyBytes": 65536,
                "tracing": {"endpoint": "http://otel.monitoring:4318", "samplingPercent": 2.5},
                "cors": {"origins": ["https://chat.example.com", "*"]},
                "resources": {"requests": {"memory": "512Mi"}, "limits": {"cpu": "1.5"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"dnsPolicy": "Default"}},
            },
        },
    ),
    "ScenarioGroup": edited(
        scenariogroup(),
        _SHARED
        | {
            "spec.replicas": 2,
            "spec.spares": 1,
            "spec.prefill": role(replicas=3, startupDeadlineSeconds=30),
            "spec.decode": role(replicas=1, **_ROLE_OPTIONS),
            **_NODES,
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


_S0 = "spec.scenarios.0"
_ONE = {"groups": 1, "prefill": 1, "decode": 1}

GOOD: Mapping[str, Object] = {
    name: edited(pdservice(), cast("Mapping[str, Any]", edits))
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
        **{
            f"model name {name!r}": {"spec.model.name": name}
            for name in (
                "/model/qwen/Qwen2-VL-7B-Instruct",
                "999 NVIDIA-Nemotron",
                "Qwen/Qwen3-8B@v2",
                "llama+lora",
                "模型",
                "gpt-4o:ft#x",
                "~/m",
                "-x",
                "$(HOME)",
                "'\"\\{}%",
                "x" * 256,
            )
        },
        "less than one request a second": {f"{_S0}.expected.requestsPerSecond": 0.2},
        "nearly all": {f"{_S0}.slo.attainmentPercent": 99.9},
        "a duration of two units": {f"{_S0}.slo.ttft": "1m30s", f"{_S0}.slo.tpot": "2000us"},
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
