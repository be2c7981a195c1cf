"""Changes that a command makes to the spec of a PDService: only while that is as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pdserve.cli import snapshot
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonObject
from pdserve.wire import names

MANAGER: Final = "kubectl-pdserve"
"""Field manager of what commands write."""


class RefusedError(Exception):
    """The command makes no sense now; the message says why."""


async def patch_spec(
    client: KubeClient, raw: Object, operations: Sequence[JsonObject], *, dry_run: bool
) -> None:
    """Apply JSON patch operations where the spec is as in `raw`; status may change meanwhile.

    Raises:
        RefusedError: the spec changed, or the right to patch is missing.
        KubeError: the API server refused, or does not answer.
    """
    meta = raw["metadata"]
    version = {"op": "test", "path": "/metadata/generation", "value": meta["generation"]}
    try:
        await client.patch_json(
            snapshot.SERVICES, meta["name"], [version, *operations],
            namespace=meta["namespace"], uid=meta["uid"], field_manager=MANAGER, dry_run=dry_run,
        )  # fmt: skip
    except KubeError as error:
        if error.is_conflict:
            raise RefusedError("the PDService changed meanwhile: look and try again") from error
        if error.is_forbidden:
            raise RefusedError(
                f"it takes the right to patch pdservices.{names.GROUP}: {error.message}"
            ) from error
        raise
