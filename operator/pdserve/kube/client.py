"""What one may ask the API server, in raw JSON, over any transport.

`KubeClient` adds to a bare transport what every caller needs and none should repeat: a token
bucket, honouring `Retry-After`, paging, uid guards, and watches that end cleanly. Two transports
exist: `transport.HttpTransport` (opened by `connect.connect`) and the in-memory API model of the
tests, which is held to the same answers by a conformance test.

It keeps nothing and retries nothing else: what an error means is the caller's decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pdserve.kube.errors import TEST_FAILED, UNREADABLE, KubeError
from pdserve.kube.ratelimit import TokenBucket
from pdserve.kube.request import KubeRequest, KubeTransport, PatchType
from pdserve.kube.resource import Object, Resource

EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
Propagation = Literal["Background", "Foreground", "Orphan"]

_EVENTS: frozenset[object] = frozenset(get_args(EventType))
PAGE_SIZE = 500
WATCH_SECONDS = 300
"""How long the server is asked to keep a watch open; it is then resumed from its bookmark."""
MAX_RETRY_AFTER = 3
"""How often one request waits out a 429 (the server did not start it) before it is an error."""
LONGEST_RETRY_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class Listing:
    """A consistent list: the items as of `resource_version`, from which to watch."""

    items: tuple[Any, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. A BOOKMARK's object carries nothing but its resourceVersion."""

    type: EventType
    object: Object


class KubeClient:
    """Asynchronous access to one API server. All methods raise `KubeError`."""

    def __init__(self, transport: KubeTransport, *, bucket: TokenBucket | None = None) -> None:
        self._transport = transport
        self._bucket = bucket

    def unlimited(self) -> KubeClient:
        """The same connection without the token bucket, for what must not wait (the Lease)."""
        return KubeClient(self._transport)

    async def close(self) -> None:
        """Close the connection (shared with `unlimited()` clients)."""
        await self._transport.close()

    # --- reading ---------------------------------------------------------------------------

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """One object, as of now."""
        return await self._send(KubeRequest("get", resource, namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = PAGE_SIZE,
        transform: Callable[[Object], object] | None = None,
    ) -> Listing:
        """Everything of a kind (in one namespace), page by page, consistent at one version.

        `transform` maps each item as its page arrives (so that a big list is never held whole);
        items it maps to None are left out. If the continue token expires in mid-list (410), the
        whole list is asked for once more without pages.
        """
        query = _selectors(label_selector, field_selector)
        try:
            return await self._list(resource, namespace, query, page_size, transform)
        except KubeError as error:
            if not (error.is_gone and page_size):
                raise
            return await self._list(resource, namespace, query, 0, transform)

    async def _list(
        self,
        resource: Resource,
        namespace: str | None,
        query: Mapping[str, str],
        page_size: int,
        transform: Callable[[Object], object] | None,
    ) -> Listing:
        items: list[Any] = []
        token = ""
        while True:
            paged = dict(query)
            if page_size:
                paged["limit"] = str(page_size)
            if token:
                paged["continue"] = token
            page = await self._send(KubeRequest("list", resource, namespace, query=paged))
            meta, found = page.get("metadata"), page.get("items") or []
            if not isinstance(meta, dict) or not isinstance(found, list):
                raise KubeError(0, UNREADABLE, f"the answer is no list of {resource.plural}")
            for item in found:
                if isinstance(item, dict):
                    # Items of a list carry neither; everything downstream relies on them.
                    item.setdefault("apiVersion", resource.api_version)
                    item.setdefault("kind", resource.kind)
                kept = item if transform is None else transform(item)
                if kept is not None:
                    items.append(kept)
            token = str(meta.get("continue") or "")
            if not token:
                return Listing(tuple(items), str(meta.get("resourceVersion") or ""))

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        seconds: int = WATCH_SECONDS,
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`, bookmarks included, until the server ends the watch.

        Raises:
            KubeError: with `is_gone` when the version is too old (list again), with
                `is_unreachable` when the connection broke or was silent for longer than bookmarks
                allow (resume from the last version seen).
        """
        query = _selectors(label_selector, field_selector)
        query |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        await self._take()
        stream = self._transport.stream(KubeRequest("watch", resource, namespace, query=query))
        async for document in stream:
            yield _event(document, resource)

    # --- writing ---------------------------------------------------------------------------

    async def create(
        self,
        resource: Resource,
        obj: Object,
        *,
        field_manager: str = "",
        dry_run: bool = False,
    ) -> Object:
        """POST; `is_already_exists` tells that the name is taken. The answer is the new object."""
        namespace = obj["metadata"].get("namespace")
        query = _write_query(field_manager, dry_run)
        return await self._send(KubeRequest("create", resource, namespace, query=query, body=obj))

    async def create_in(
        self, resource: Resource, name: str, subresource: str, body: Object, *, namespace: str
    ) -> Object:
        """POST to a subresource of `name`: a service account's `token`, a pod's `eviction`."""
        return await self._send(
            KubeRequest("create", resource, namespace, name, subresource, body=body)
        )

    async def apply(
        self,
        resource: Resource,
        obj: Object,
        *,
        field_manager: str,
        uid: str | None = None,
        resource_version: str | None = None,
        force: bool = True,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Server-side apply: `obj` names every field that `field_manager` wants to own.

        With `uid`, only that very object is changed: another of its name, or none, is a
        conflict. Without it, an absent object is created and a foreign one is merged into: prefer
        `ownership.create_or_apply`. With `resource_version`, only that state of it.

        Custom resources ignore `uid` on their status subresource: there it is compared with the
        answer, which is a conflict too, but the namesake has been written to (its next
        reconcile puts that right). Where that matters, give `resource_version`.
        """
        guards = {"uid": uid, "resourceVersion": resource_version}
        given = {key: value for key, value in guards.items() if value is not None}
        obj = {**obj, "metadata": {**obj["metadata"], **given}}
        query = _write_query(field_manager, dry_run)
        if force:
            query["force"] = "true"
        request = _named("patch", resource, obj, subresource, query=query, body=obj, patch="apply")
        return await self._send_guarded(request, uid)

    async def update(self, resource: Resource, obj: Object) -> Object:
        """PUT the whole object; `is_conflict` if its resourceVersion is no longer the newest."""
        return await self._send(_named("update", resource, obj, None, body=obj))

    async def patch_json(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[Mapping[str, object]],
        *,
        namespace: str | None = None,
        uid: str | None = None,
        subresource: str | None = None,
        field_manager: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Apply a JSON patch (RFC 6902); returns the object as stored.

        `uid` prepends a test that the object still has it. With `dry_run` nothing is stored.

        Raises:
            KubeError: refused; a test that fails is `is_conflict`.
        """
        body = [dict(operation) for operation in operations]
        if uid is not None:
            body.insert(0, {"op": "test", "path": "/metadata/uid", "value": uid})
        request = KubeRequest(
            "patch", resource, namespace, name, subresource,
            query=_write_query(field_manager, dry_run), body=body, patch="json",
        )  # fmt: skip
        try:
            return await self._send(request)
        except KubeError as error:
            tests = any(operation.get("op") == "test" for operation in body)
            # The server gives a failed test no cause, unlike a failed validation.
            if tests and error.status == 422 and not error.causes:
                raise KubeError(422, TEST_FAILED, error.message) from error
            raise

    async def patch_status(
        self,
        resource: Resource,
        name: str,
        status: Mapping[str, object],
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        strategic: bool = False,
        field_manager: str = "",
    ) -> Object:
        """Merge `status` into the status subresource, of that `uid` and version only if given.

        For custom resources `uid` guards no better than in `apply`.

        A JSON merge replaces lists whole. `strategic` (built-in kinds only) merges them by key:
        the way to set one pod condition without racing the kubelet for the others.
        """
        body: Object = {"status": dict(status)}
        guards = {"uid": uid, "resourceVersion": resource_version}
        if any(guards.values()):
            body["metadata"] = {key: value for key, value in guards.items() if value}
        request = KubeRequest(
            "patch", resource, namespace, name, "status",
            query=_write_query(field_manager, False),
            body=body, patch="strategic" if strategic else "merge",
        )  # fmt: skip
        return await self._send_guarded(request, uid)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        grace: int | None = None,
        propagation: Propagation | None = None,
    ) -> Object:
        """Delete, only the object with `uid` and `resource_version` if given (else `is_conflict`).

        The answer is the object as marked (a pod that terminates gracefully) or a Status.
        `grace` in seconds; 0 forces a pod away without its node's word.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        given = {"uid": uid, "resourceVersion": resource_version}
        if guards := {name: value for name, value in given.items() if value is not None}:
            options["preconditions"] = guards
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if propagation is not None:
            options["propagationPolicy"] = propagation
        return await self._send(KubeRequest("delete", resource, namespace, name, body=options))

    # --- sending ---------------------------------------------------------------------------

    async def _send_guarded(self, request: KubeRequest, uid: str | None) -> Object:
        """Send a write meant for the object with that uid; anything else is a conflict."""
        try:
            answer = await self._send(request)
        except KubeError as error:
            raise _uid_conflict(error, uid) from error
        meta = answer.get("metadata")
        if not isinstance(meta, dict):
            raise KubeError(0, UNREADABLE, f"the answer is no {request.resource.kind}")
        met = meta.get("uid")
        if uid is not None and met != uid:
            raise KubeError(409, "Conflict", f"the object has uid {met}, not {uid}")
        return answer

    async def _take(self) -> None:
        if self._bucket is not None:
            await self._bucket.take()

    async def _send(self, request: KubeRequest) -> Object:
        for attempt in range(MAX_RETRY_AFTER + 1):
            await self._take()
            try:
                return await self._transport.send(request)
            except KubeError as error:
                refused = error.status == 429 and error.retry_after is not None
                if not refused or attempt == MAX_RETRY_AFTER:
                    raise
                await asyncio.sleep(min(error.retry_after or 0.0, LONGEST_RETRY_AFTER))
        raise AssertionError("unreachable: the last attempt returns or raises")


def _event(document: Object, resource: Resource) -> WatchEvent:
    """One document of a watch.

    Raises:
        KubeError: it is an ERROR, or none that an API server sends.
    """
    kind, obj = document.get("type"), document.get("object")
    if kind == "ERROR" and isinstance(obj, dict):
        raise KubeError.from_status(500, obj)
    meta = obj.get("metadata") if isinstance(obj, dict) else None
    version = meta.get("resourceVersion") if isinstance(meta, dict) else None
    if kind not in _EVENTS or not isinstance(version, str) or not version.isdecimal():
        raise KubeError(0, UNREADABLE, f"a watch of {resource.plural} sent what is no event")
    return WatchEvent(kind, obj)  # type: ignore[arg-type]  # a dict, as its metadata showed


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    given = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {key: value for key, value in given.items() if value}


def _write_query(field_manager: str, dry_run: bool) -> dict[str, str]:
    query = {"fieldManager": field_manager} if field_manager else {}
    return query | ({"dryRun": "All"} if dry_run else {})


def _named(
    verb: Literal["update", "patch"],
    resource: Resource,
    obj: Object,
    subresource: str | None,
    *,
    query: Mapping[str, str] | None = None,
    body: Object,
    patch: PatchType | None = None,
) -> KubeRequest:
    meta = obj["metadata"]
    return KubeRequest(
        verb, resource, meta.get("namespace"), meta["name"], subresource,
        query=query or {}, body=body, patch=patch,
    )  # fmt: skip


def _uid_conflict(error: KubeError, uid: str | None) -> KubeError:
    """A guard on a uid that did not hold comes back as 422 `metadata.uid`: call it a conflict."""
    if uid is None or error.status != 422:
        return error
    if any(cause.get("field") == "metadata.uid" for cause in error.causes):
        return KubeError(409, "Conflict", error.message)
    return error
