"""Reads and writes the Secrets that hold a PDService's credentials.

Secrets are neither listed nor watched: the operator reads the names it needs and remembers the
answer until `forget`. `credentials` says what is in them and how they change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from pdserve.desired.objects import owned_metadata
from pdserve.desired.service_credentials import (
    ServiceCredentials,
    encode,
    fresh,
    from_data,
    text_of,
    to_data,
)
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, is_controlled_by
from pdserve.kube.resource import SECRETS, Object
from pdserve.terms.json import JsonMap
from pdserve.wire import names

SHARED_KEY = "token"
REQUEST_KEY = "request"


class Tokens:
    """Credentials by service, read on demand."""

    def __init__(self, client: KubeClient, random_bytes: Callable[[int], bytes]) -> None:
        """`random_bytes(n)` gives n bytes that cannot be guessed."""
        self._client = client
        self.random_bytes = random_bytes
        self._held: dict[str, ServiceCredentials] = {}
        self._lost: dict[str, ServiceCredentials] = {}
        """What was known before `forget`: a deleted Secret is written again from it."""
        self._verified: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, service: str) -> ServiceCredentials:
        """The credentials of a service; `key`: `namespace/name`.

        Raises:
            KubeError: the Secret cannot be read.
            BadSecret: its content cannot be used.
        """
        if service not in self._held:
            namespace, _, name = service.partition("/")
            secret = await self._client.get(SECRETS, names.credentials_secret_name(name), namespace)
            token = await self._find(names.token_secret_name(name), namespace)
            self._held[service] = _read(secret, token)
        return self._held[service]

    async def ensure(
        self, namespace: str, service: str, owner: JsonMap, rotation: str = ""
    ) -> ServiceCredentials:
        """Make the Secrets that are not there, and put right what gateways mount.

        `rotation`: what new credentials already count as the answer to.

        Raises:
            NotOursError: a Secret of such a name exists and `owner` does not control it.
            BadSecret: its content cannot be used.
            KubeError: the API server refused.
        """
        uid, key = str(owner["uid"]), f"{namespace}/{service}"
        async with self._locks.setdefault(key, asyncio.Lock()):
            if uid in self._verified and key in self._held:
                return self._held[key]
            token = await self._find(names.token_secret_name(service), namespace, uid)
            name = names.credentials_secret_name(service)
            secret = await self._find(name, namespace, uid)
            if secret is None:
                wanted = self._lost.get(key) or fresh(self.random_bytes, rotation)
                # Two operators may get here at once; POST lets one of them win.
                secret = await self._create(
                    name, namespace, service, owner, "credentials", to_data(wanted)
                )
            held = _read(secret, token)
            await self._give(namespace, service, owner, held)
            self._held[key] = held
            self._verified.add(uid)
            return held

    async def change(
        self, namespace: str, service: str, owner: JsonMap, new: ServiceCredentials
    ) -> None:
        """Store the next state; what a crash leaves undone, `ensure` completes.

        Raises:
            KubeError: `is_conflict` when the Secret is not what `get` returned.
        """
        uid, key = str(owner["uid"]), f"{namespace}/{service}"
        async with self._locks.setdefault(key, asyncio.Lock()):
            old = self._held.pop(key)
            self._verified.discard(uid)
            if old.shared and not new.shared:
                token = await self._find(names.token_secret_name(service), namespace, uid)
                if token is not None:
                    await self._client.delete(
                        SECRETS,
                        names.token_secret_name(service),
                        namespace=namespace,
                        uid=token["metadata"]["uid"],
                    )
            name = names.credentials_secret_name(service)
            secret = await self._client.get(SECRETS, name, namespace)
            await self._replace(secret, to_data(old), to_data(new))
            await self._give(namespace, service, owner, new)
            self._held[key] = new
            self._verified.add(uid)

    def look_again(self, service: str, owner: str) -> None:
        """Let `ensure` look for the Secrets of service key `namespace/name`, whose uid is `owner`.

        A deleted one is written again from what is known.
        """
        if service in self._held:
            self._lost[service] = self._held[service]
        self._verified.discard(owner)

    def forget(self) -> None:
        """Read everything anew at the next use (a Secret may have been deleted)."""
        self._lost |= self._held
        self._held.clear()
        self._verified.clear()

    async def _give(
        self, namespace: str, service: str, owner: JsonMap, held: ServiceCredentials
    ) -> None:
        """The Secret that gateways mount."""
        name = names.request_secret_name(service)
        data = encode({REQUEST_KEY: "\n".join(held.request)})
        found = await self._find(name, namespace, str(owner["uid"]))
        if found is None:
            await self._create(name, namespace, service, owner, "gateway", data)
        elif found.get("data") != data:
            await self._replace(found, found.get("data"), data)

    async def _find(self, name: str, namespace: str, owner: str = "") -> Object | None:
        try:
            found = await self._client.get(SECRETS, name, namespace)
        except KubeError as error:
            if not error.is_not_found:
                raise
            return None
        if owner and not is_controlled_by(found, owner):
            raise NotOursError(SECRETS, found, owner)
        return found

    async def _create(
        self,
        name: str,
        namespace: str,
        service: str,
        owner: JsonMap,
        component: str,
        data: Mapping[str, str],
    ) -> Object:
        secret: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": owned_metadata(name, namespace, service, owner, component),
            "type": "Opaque",
            "data": dict(data),
        }
        return await self._client.create(SECRETS, secret, field_manager=names.FIELD_MANAGER)

    async def _replace(self, secret: Object, old: object, new: Mapping[str, str]) -> None:
        meta = secret["metadata"]
        operations: list[JsonMap] = [
            {"op": "test", "path": "/data", "value": old},
            {"op": "add", "path": "/data", "value": dict(new)},
        ]
        await self._client.patch_json(
            SECRETS, meta["name"], operations,
            namespace=meta["namespace"], uid=meta["uid"], field_manager=names.FIELD_MANAGER,
        )  # fmt: skip


def _read(secret: Object, token: Object | None) -> ServiceCredentials:
    held = from_data(secret["metadata"]["name"], secret.get("data"))
    if token is None:
        return held
    shared = text_of(token["metadata"]["name"], token.get("data"), SHARED_KEY)[0]
    return ServiceCredentials(held.control, held.request, held.kv, held.step, held.rotation, shared)
