"""A plain HTTP client for tests that must see exactly what the API server answers."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from pdserve.local.controlplane import ControlPlane

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


def _status(body: bytes) -> dict[str, Any]:
    """The server's Status object; an unknown path is answered in plain text."""
    try:
        return dict(json.loads(body))
    except ValueError:
        return {"message": body.decode(errors="replace")}


class Rest:
    """Requests to one API server as its administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        self._server = plane.server
        self._token = plane.admin.token
        self._tls = ssl.create_default_context(cafile=str(plane.ca_file))

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Answer:
        """One request; an error status is an answer like any other."""
        url = f"{self._server}{path}" + (f"?{urlencode(query)}" if query else "")
        request = urllib.request.Request(
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": content_type,
                "Accept": accept,
            },
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as reply:
                return Answer(reply.status, json.load(reply))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _status(error.read()))

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
