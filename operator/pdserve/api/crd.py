"""CustomResourceDefinition manifests of the kinds. Text form: `hack/generate.py`, `crds/`."""

from __future__ import annotations

from pdserve.api.base import VALIDATIONS, ApiModel, validation
from pdserve.api.custom_resource import GROUP, VERSION, Column, CustomResource, KindInfo
from pdserve.api.schema import structural_schema
from pdserve.terms.json import JsonObject

CATEGORY = "pdserve"


def crd_manifest(kind: type[CustomResource]) -> JsonObject:
    """The CustomResourceDefinition to apply for one kind, as JSON values.

    Raises:
        TypeError: the kind has no `spec` and `status` of API models.
    """
    info = kind.info
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": info.crd_name},
        "spec": {
            "group": GROUP,
            "scope": info.scope,
            "names": {
                "kind": info.name,
                "listKind": f"{info.name}List",
                "plural": info.plural,
                "singular": info.name.lower(),
                "shortNames": [info.short],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                    "subresources": _subresources(info),
                    "additionalPrinterColumns": [_column(c) for c in info.columns],
                }
            ],
        },
    }


def spec_and_status(kind: type[CustomResource]) -> tuple[type[ApiModel], type[ApiModel]]:
    """The two types that a kind consists of.

    Raises:
        TypeError: field `spec` or `status` is no API model.
    """
    spec, status = (kind.model_fields[part].annotation for part in ("spec", "status"))
    if not (isinstance(spec, type) and issubclass(spec, ApiModel)):
        raise TypeError(f"{kind.__name__}.spec is not a Model")
    if not (isinstance(status, type) and issubclass(status, ApiModel)):
        raise TypeError(f"{kind.__name__}.status is not a Model")
    return spec, status


def root_schema(kind: type[CustomResource]) -> JsonObject:
    """OpenAPI schema of a whole object of this kind: its spec, its status, and rules over both.

    Raises:
        TypeError: the kind has no `spec` and `status` of API models.
    """
    spec, status = spec_and_status(kind)
    schema: JsonObject = {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(spec),
            "status": structural_schema(status, written=False),
        },
    }
    if kind.rules:
        schema["properties"]["metadata"]["properties"] = {"name": {"type": "string"}}
        schema[VALIDATIONS] = [validation(r.cel, r.message, r.field) for r in kind.rules]
    return schema


def _subresources(info: KindInfo) -> JsonObject:
    subresources: JsonObject = {"status": {}}
    if info.scale is not None:
        subresources["scale"] = {
            "specReplicasPath": info.scale.spec_replicas,
            "statusReplicasPath": info.scale.status_replicas,
            "labelSelectorPath": info.scale.selector,
        }
    return subresources


def _column(column: Column) -> JsonObject:
    shown: JsonObject = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        shown["description"] = column.description
    if column.wide:
        shown["priority"] = 1
    return shown
