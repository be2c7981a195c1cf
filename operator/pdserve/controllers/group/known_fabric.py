"""The last known RoCEDomain of a ScenarioGroup: repair goes on with it when the object is gone.

It is stored in `status.fabric`, so a restart of the operator loses nothing. It holds the
description of the tree, some hundred bytes; nodes and what is free on them are read from the
cluster.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from pdserve.api import InvalidObjectError, RoCEDomain, ScenarioGroup
from pdserve.api.scenariogroup import MAX_FABRIC
from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.group_view import domain_of
from pdserve.frozen import Memo
from pdserve.terms.json import JsonMap
from pdserve.wire.bounds import WireError, parse_json

log = logging.getLogger(__name__)

_texts: Memo[str] = Memo(most=64)


def known_fabric(caches: Caches, group: ScenarioGroup) -> Mapping[str, str]:
    """`status.fabric` for the RoCEDomain as it is now; empty where there is none to be read."""
    name = group.spec.fabric.domain_ref.name
    obj = caches.domains.get(name)
    if obj is None or domain_of(caches, name) is None:
        return {}
    spec = _texts.of(lambda: _encoded(obj["spec"]), obj["spec"])
    return {"domain": name, "spec": spec} if len(spec) <= MAX_FABRIC else {}


def _encoded(spec: JsonMap) -> str:
    return json.dumps(spec, separators=(",", ":"), sort_keys=True)


def recalled_domain(group: ScenarioGroup) -> RoCEDomain | None:
    """The group's RoCEDomain as its status remembers it; None where it does not."""
    known, name = group.status.fabric, group.spec.fabric.domain_ref.name
    if known is None or known.domain != name:
        return None
    try:
        spec = parse_json(known.spec, max_bytes=4 * MAX_FABRIC)
        return RoCEDomain.stored({"metadata": {"name": name}, "spec": spec})
    except (WireError, InvalidObjectError) as error:
        meta = group.metadata
        log.warning("status.fabric of %s/%s: %s", meta.namespace, meta.name, error)
        return None
