"""Structural OpenAPI v3 schemas of the API types, as CustomResourceDefinitions demand them.

pydantic writes JSON Schema with `$ref`, `anyOf: null` and titles; the API server wants everything
inline, bounded, and without those. Neighbour: `crd` puts a kind's schemas into a manifest.
"""

from __future__ import annotations

from pdserve.api.base import VALIDATIONS, ApiModel
from pdserve.terms.json import JsonObject

_COPIED = (
    "type",
    "format",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
)


def structural_schema(model: type[ApiModel], *, written: bool = True) -> JsonObject:
    """Schema of `model`, nested types inline.

    `written=False` is for status, which people do not write: no defaults, which would invent
    observations, and no CEL rules, which the operator's own types check before it writes.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(raw, raw.get("$defs", {}), written)


def _convert(node: JsonObject, defs: JsonObject, written: bool) -> JsonObject:
    node = _resolved(node, defs)
    schema: JsonObject = {}
    if "description" in node:
        schema["description"] = " ".join(node["description"].split())
    schema |= {key: node[key] for key in _COPIED if key in node}
    if "const" in node:
        schema |= {"type": "string", "enum": [node["const"]]}
    if "properties" in node:
        schema["properties"] = {
            name: _convert(child, defs, written) for name, child in node["properties"].items()
        }
    if isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _convert(node["additionalProperties"], defs, written)
    if "items" in node:
        schema["items"] = _convert(node["items"], defs, written)
    if written and node.get(VALIDATIONS):
        schema[VALIDATIONS] = node[VALIDATIONS]
    if written and (default := _default(node.get("default"))) is not None:
        schema["default"] = default
    return schema


def _default(value: object) -> object:
    """Default for the server to fill in; empty ones are left to the parser, to store less."""
    if isinstance(value, dict):
        value = {k: d for k, v in value.items() if (d := _default(v)) is not None}
    return None if value in (None, "", [], {}) else value


def _resolved(node: JsonObject, defs: JsonObject) -> JsonObject:
    """Follow references and optional types; what stands nearer to the field wins."""
    while True:
        if "$ref" in node:
            inner = defs[node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            inner = next(option for option in node["anyOf"] if option.get("type") != "null")
        elif "allOf" in node:
            inner = node["allOf"][0]
        else:
            return node
        node = inner | {k: v for k, v in node.items() if k not in ("$ref", "anyOf", "allOf")}
