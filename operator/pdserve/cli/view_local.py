"""What `kubectl pdserve explain` says of prompts that decodes compute themselves. Wording only.

Gateways learn the crossover and do not share it, so each ready gateway of a service is asked for
its metrics. Neighbours: `ask_stream` reads them, `forwarding.local_prefill` has the rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pdserve import api
from pdserve.kube.errors import KubeError
from pdserve.wire import metrics as names

_SERIES = re.compile(r"^(\w+)\{(.*)\} ([0-9.e+-]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Scrapes = Mapping[str, str | KubeError]
"""Exposition of each gateway by its pod's name, or why there is none."""


def wanted(service: api.PDService, scenario: str | None) -> bool:
    """Whether a scenario of this name, or any where it is None, lets decodes compute prompts."""
    return any(
        s.local_prefill.mode != "Off" and scenario in (None, s.name) for s in service.spec.scenarios
    )


def render(service: api.PDService, scenario: str | None, scrapes: Scrapes) -> str:
    """The crossover of each scenario of this name (None: of all), gateway by gateway."""
    lines = []
    for each in service.spec.scenarios:
        local = each.local_prefill
        if local.mode == "Off" or scenario not in (None, each.name):
            continue
        lines.append(f"Prompts that decodes compute themselves, scenario {each.name}: {local.mode}")
        if local.mode == "Fixed":
            lines.append(f"  up to {local.max_tokens} tokens")
        lines += [f"  {name}: {_gateway(each.name, found)}" for name, found in scrapes.items()]
        if not scrapes:
            lines.append("  no gateway is ready")
    return "\n".join(lines)


def _gateway(scenario: str, found: str | KubeError) -> str:
    """What one gateway does now and did since its start."""
    if isinstance(found, KubeError):
        return f"not shown: {found}"
    values: dict[tuple[str, str], float] = {}
    for name, labels, value in _SERIES.findall(found):
        given = dict(_LABEL.findall(labels))
        if given.get("scenario") == scenario:
            values[name, given.get("result", "")] = float(value)
    crossover = values.get((names.GATEWAY_LOCAL_CROSSOVER, ""))
    if crossover is None:
        return "not shown: it is of a version without them, or has no requests yet"
    counts = [
        f"{values.get((names.GATEWAY_LOCAL_PREFILLS, result), 0.0):.0f} {result}"
        for result in ("served", "refused", "failed")
    ]
    return f"crossover {crossover:.0f} tokens now; since its start {', '.join(counts)}"
