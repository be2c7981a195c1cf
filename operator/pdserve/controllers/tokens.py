"""The secret that operator, gateways, engines and KV links of one PDService share.

Made once (32 random bytes) and never changed. Secrets are neither listed nor watched: the
operator reads the one name it needs and remembers the answer until `forget`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from pdserve.controllers.objects import owned_metadata
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, is_controlled_by
from pdserve.kube.resource import SECRETS, Object
from pdserve.wire import names

KEY = "token"
TOKEN_BYTES = 32
MAX_TOKEN = 4096


class BadSecret(Exception):  # noqa: N818 - what a user stored, not a defect
    """A Secret's content cannot be used as a token; the message says why, never the content."""


class Tokens:
    """Tokens by service, read on demand."""

    def __init__(self, client: KubeClient, random_bytes: Callable[[int], bytes]) -> None:
        """`random_bytes(n)` gives n bytes that nobody can guess."""
        self._client = client
        self._random_bytes = random_bytes
        self._tokens: dict[str, str] = {}
        self._verified: set[str] = set()

    async def get(self, service: str) -> str:
        """The token of a service key `namespace/name`; raises KubeError, BadSecret."""
        if service not in self._tokens:
            namespace, _, name = service.partition("/")
            secret = await self._client.get(SECRETS, names.token_secret_name(name), namespace)
            self._tokens[service] = _token(secret)
        return self._tokens[service]

    async def ensure(self, namespace: str, service: str, owner: Mapping[str, Any]) -> None:
        """Make the Secret if it is not there.

        Raises:
            NotOursError: a Secret of that name exists and the PDService does not control it.
            BadSecret: its content cannot be used.
            KubeError: the API server refused.
        """
        uid = str(owner["uid"])
        if uid in self._verified:
            return
        name = names.token_secret_name(service)
        secret: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": owned_metadata(name, namespace, service, owner, "token"),
            "type": "Opaque",
            "immutable": True,
            "data": {
                KEY: base64.b64encode(self._random_bytes(TOKEN_BYTES).hex().encode()).decode()
            },
        }
        try:
            found = await self._client.get(SECRETS, name, namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            # Two operators may get here at once; POST lets one of them win.
            found = await self._client.create(SECRETS, secret, field_manager=names.FIELD_MANAGER)
        if not is_controlled_by(found, uid):
            raise NotOursError(SECRETS, found, uid)
        self._tokens[f"{namespace}/{service}"] = _token(found)
        self._verified.add(uid)

    def forget(self) -> None:
        """Read everything anew at the next use (a Secret may have been deleted)."""
        self._tokens.clear()
        self._verified.clear()


def _token(secret: Object) -> str:
    """The token; raises BadSecret where there is none that can be a header's value."""
    name = secret["metadata"].get("name")
    try:
        token = base64.b64decode((secret.get("data") or {})[KEY], validate=True).decode("ascii")
    except (KeyError, ValueError, TypeError) as error:
        raise BadSecret(f"Secret {name}: key {KEY!r} is missing or not ASCII text") from error
    if not 0 < len(token) <= MAX_TOKEN or not token.isprintable():
        raise BadSecret(
            f"Secret {name}: key {KEY!r} is not one line of 1 to {MAX_TOKEN} characters"
        )
    return token
