"""Writes a decision to `ScenarioGroup.status.decisions`, and logs it.

The whole list is replaced under the version it was read at; `desired.decisions` makes the entries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.desired.decisions import appended
from pdserve.kube.cache import Cache
from pdserve.kube.client import KubeClient
from pdserve.kube.lines import say
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap
from pdserve.wire import names

_NOTHING: Final[JsonMap] = MappingProxyType({})
log = logging.getLogger(__name__)


async def write_decision(
    client: KubeClient, cache: Cache, obj: Object, new: JsonMap | None, beside: JsonMap = _NOTHING
) -> None:
    """Append `new` to the live object's list; KubeError `is_conflict` if it changed meanwhile.

    `beside`: fields of status to write in the same moment; `new` None: these alone.
    """
    meta = obj["metadata"]
    old = (obj.get("status") or {}).get("decisions") or []
    listed = {} if new is None else {"decisions": appended(old, new)}
    live = await client.patch_status(
        SCENARIO_GROUPS, meta["name"], {**listed, **beside},
        namespace=meta["namespace"], uid=meta["uid"],
        resource_version=meta["resourceVersion"], field_manager=names.FIELD_MANAGER,
    )  # fmt: skip
    cache.observe(live)
    if new is None:
        return
    before, to = (_spelled(new[side]) for side in ("from", "to"))
    say(
        log, f"Decided {before} -> {to}: {new['message']}",
        reason=new["reason"], outcome=new["outcome"], namespace=meta["namespace"],
        name=meta["name"], service=obj["spec"]["service"], scenario=obj["spec"]["scenario"],
    )  # fmt: skip


def _spelled(counts: Mapping[str, int]) -> str:
    return f"{counts['groups']} x {counts['prefill']}P{counts['decode']}D"
