"""A plain HTTP client for tests that must see exactly what the API server answers.

It keeps its connections: tests that wait ask often, and a TLS handshake costs both sides more
than the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from localcluster.controlplane import ControlPlane

PATCH = {
    "apply": "application/apply-patch+yaml",
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
}
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code and JSON body."""

    code: int
    body: dict[str, Any]

    @property
    def causes(self) -> list[tuple[str, str]]:
        """(field path, message) of each validation error."""
        causes = (self.body.get("details") or {}).get("causes") or []
        return [(c.get("field", ""), c.get("message", "")) for c in causes]


def _json(body: bytes) -> dict[str, Any]:
    """An object; an unknown path is answered in plain text."""
    try:
        return dict(json.loads(body))
    except (ValueError, RecursionError):
        return {"message": body.decode(errors="replace")}


class Rest:
    """Requests to one API server as its administrator."""

    def __init__(self, server: str, token: str, ca_file: Path) -> None:
        self._server = server
        self._token = token
        self._pool = urllib3.PoolManager(ca_certs=str(ca_file), timeout=30)

    @classmethod
    def of(cls, plane: ControlPlane) -> Rest:
        """Requests to a control plane that runs."""
        return cls(plane.server, plane.admin.token, plane.ca_file)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        user: str | None = None,
        **query: str,
    ) -> Answer:
        """One request, as `user` where one is given; an error status is an answer like others.

        `body`: a JSON value, or bytes that are sent as they are.
        """
        reply = self._pool.request(
            method,
            f"{self._server}{path}" + (f"?{urlencode(query)}" if query else ""),
            body=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": content_type,
                "Accept": accept,
                **({"Impersonate-User": user} if user else {}),
            },
            # A kept connection may have ended meanwhile; what was answered is not asked again.
            retries=urllib3.Retry(1, status=0, redirect=0, respect_retry_after_header=False),
        )
        return Answer(reply.status, _json(reply.data))

    def get(self, path: str, **query: str) -> Answer:
        """GET."""
        return self.call("GET", path, **query)

    def create(self, path: str, body: Any, **query: str) -> Answer:
        """POST; unknown fields are an error."""
        return self.call("POST", path, body, fieldValidation="Strict", **query)

    def apply(self, path: str, body: Any, manager: str, *, force: bool = True) -> Answer:
        """Server-side apply."""
        return self.call(
            "PATCH",
            path,
            body,
            content_type=PATCH["apply"],
            fieldManager=manager,
            force=str(force).lower(),
        )

    def patch(self, path: str, body: Any, kind: str = "merge", **query: str) -> Answer:
        """Merge or JSON patch."""
        return self.call("PATCH", path, body, content_type=PATCH[kind], **query)
