"""Fetches what a pod's environment and volumes are made from: ConfigMaps, Secrets, tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from localcluster.agent.environment import SourceKey, Sources
from localcluster.agent.host import monotonic
from localcluster.agent.volumes import TokenKey
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS, SECRETS, SERVICE_ACCOUNTS, Object

_RESOURCES = {"ConfigMap": CONFIGMAPS, "Secret": SECRETS}
_RENEW_AT = 0.8
"""Fraction of a token's life after which it is replaced, as the kubelet does."""


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    renew_at: float


class PodObjects:
    """What one pod needs from its namespace. Errors of the API server are the caller's."""

    def __init__(self, client: KubeClient, pod: Object) -> None:
        self._client = client
        self._namespace = pod["metadata"]["namespace"]
        self._pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        }
        self._account = pod["spec"].get("serviceAccountName") or "default"
        self._tokens: dict[TokenKey, _Token] = {}

    async def sources(self, keys: Iterable[SourceKey]) -> Sources:
        """The objects named, as of now; None where there is none."""
        found: dict[SourceKey, Object | None] = {}
        for kind, name in sorted(set(keys)):
            try:
                obj = await self._client.get(_RESOURCES[kind], name, self._namespace)
                found[kind, name] = {**obj, "kind": kind}
            except KubeError as error:
                if not error.is_not_found:
                    raise
                found[kind, name] = None
        return found

    async def tokens(self, keys: Iterable[TokenKey]) -> dict[TokenKey, str]:
        """Service account tokens bound to the pod, renewed in time."""
        for key in keys:
            token = self._tokens.get(key)
            if token is None or monotonic() >= token.renew_at:
                self._tokens[key] = await self._token(*key)
        return {key: self._tokens[key].value for key in keys}

    async def _token(self, audience: str, seconds: int) -> _Token:
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": self._pod,
            },
        }
        asked = monotonic()
        answer = await self._client.create_in(
            SERVICE_ACCOUNTS, self._account, "token", request, namespace=self._namespace
        )
        return _Token(str(answer["status"]["token"]), asked + seconds * _RENEW_AT)
