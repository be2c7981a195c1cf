"""Reads the stored route tables, whatever text a step may have written into them."""

from __future__ import annotations

import json

from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names


def table_in(config_map: Object) -> JsonObject:
    """The route table in a ConfigMap as JSON; empty where there is none, or a foreign text."""
    try:
        table = json.loads(config_map["data"][names.KEY_ROUTES])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def routed_ids(routes: JsonMap) -> list[str]:
    """Ids of the instances of a route table; none of a content that is no table.

    A gateway refuses such a content, and the operator writes a new one.
    """
    try:
        return [
            str(instance["id"])
            for scenario in routes["scenarios"]
            for group in scenario["groups"]
            for instance in group["instances"]
        ]
    except (KeyError, TypeError):
        return []
