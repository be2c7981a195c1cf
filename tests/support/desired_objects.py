"""A PDService and the objects of its gateway, from edits of a spec."""

from __future__ import annotations

from typing import Any

from pdserve.api import PDService
from pdserve.desired.objects import gateway_objects
from pdserve.dst.world_service import service

OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "PDService", "name": "shop", "uid": "u",
         "controller": True}  # fmt: skip


def parsed(**spec: Any) -> PDService:
    return PDService.parse(service(**spec))


def by_kind(**spec: Any) -> dict[str, dict[str, Any]]:
    made = gateway_objects(parsed(**spec), "registry/gateway:1", OWNER, "f1")
    return {o["kind"]: o for o in made}
