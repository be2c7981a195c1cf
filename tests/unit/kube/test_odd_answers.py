"""What answers instead of an API server, or speaks like a broken one, is an error of one kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.errors import MAX_AFTER, UNREADABLE, KubeError
from pdserve.kube.resource import CONFIGMAPS

HTML = b"<html><body>It works!</body></html>\n"
OBJECT = {"metadata": {"name": "a", "namespace": "default"}}


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}
    head = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(raw: bytes, folder: Path) -> AsyncIterator[KubeClient]:
    """A client of a server that answers every request with `raw`, and then hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    client = await connect(str(path))
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def watch(client: KubeClient) -> None:
    async for _ in client.watch(CONFIGMAPS, resource_version="1"):
        pass


ASKING: dict[str, Callable[[KubeClient], object]] = {
    "get": lambda c: c.get(CONFIGMAPS, "a", "default"),
    "list": lambda c: c.list(CONFIGMAPS),
    "create": lambda c: c.create(CONFIGMAPS, OBJECT),
    "apply": lambda c: c.apply(CONFIGMAPS, OBJECT, field_manager="m", uid="u"),
    "json patch": lambda c: c.patch_json(CONFIGMAPS, "a", [], namespace="default", uid="u"),
    "status": lambda c: c.patch_status(CONFIGMAPS, "a", {}, namespace="default", uid="u"),
    "delete": lambda c: c.delete(CONFIGMAPS, "a", namespace="default"),
    "watch": watch,
}
UNREAD: dict[str, bytes] = {
    "HTML": answer(HTML, Content_Type="text/html"),
    "HTML said to be JSON": answer(HTML),
    "a list": answer(b"[1]\n"),
    "text": answer(b'"ok"\n'),
    "half a document": answer(b'{"metadata": {"na\n'),
    "not UTF-8": answer(b'{"metadata": "\xff\xfe"}\n'),
    "a number beyond a double": answer(b'{"metadata": 1e999}\n'),
}
SILENT: dict[str, bytes] = {
    "redirect": answer(b"", "302 Found", Location="http://127.0.0.1:1/"),
    "redirect to itself": answer(b"", "307 Temporary Redirect", Location="/"),
    "not HTTP": b"220 mail.example.com ESMTP\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Len",
    "less than it says": answer(b"{}", Content_Length="50"),
    "no end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
}


@pytest.mark.parametrize("how", ASKING)
@pytest.mark.parametrize("case", [*UNREAD, *SILENT])
async def test_what_is_no_answer_of_an_api_server_is_none(
    case: str, how: str, tmp_path: Path
) -> None:
    async with serving({**UNREAD, **SILENT}[case], tmp_path) as client:
        with pytest.raises(KubeError) as raised:
            await ASKING[how](client)  # type: ignore[misc]
        assert raised.value.is_unreachable
        if case in UNREAD:
            assert raised.value.reason == UNREADABLE


@pytest.mark.parametrize(
    "body", [{}, {"metadata": 5}, {"metadata": {}, "items": 5}, {"items": []}], ids=str
)
async def test_a_list_of_another_shape_is_none(body: object, tmp_path: Path) -> None:
    async with serving(answer(json.dumps(body).encode()), tmp_path) as client:
        with pytest.raises(KubeError, match="no list of configmaps") as raised:
            await client.list(CONFIGMAPS)
        assert raised.value.reason == UNREADABLE


@pytest.mark.parametrize("how", ["apply", "status"])
async def test_a_write_that_is_answered_by_something_else_was_not_done_for_sure(
    how: str, tmp_path: Path
) -> None:
    async with serving(answer(b"{}"), tmp_path) as client:
        with pytest.raises(KubeError, match="the answer is no ConfigMap") as raised:
            await ASKING[how](client)  # type: ignore[misc]
        assert raised.value.is_unreachable


STATUSES: dict[str, tuple[bytes, int, float | None]] = {
    "no body": (answer(b"", "503 Service Unavailable"), 503, None),
    "HTML": (answer(HTML, "502 Bad Gateway"), 502, None),
    "another code inside": (answer(b'{"kind":"Status","code":"x"}', "409 Conflict"), 409, None),
    "a code that is none": (answer(b'{"kind":"Status","code":7}', "500 X"), 500, None),
    "details of another type": (answer(b'{"kind":"Status","details":5}', "422 X"), 422, None),
    "causes of another type": (
        answer(b'{"kind":"Status","details":{"causes":[5,null],"retryAfterSeconds":"9"}}', "422 X"),
        422,
        None,
    ),
    "a wait below zero": (
        answer(b'{"kind":"Status","details":{"retryAfterSeconds":-9}}', "500 X"), 500, None,
    ),
    "a wait without end": (
        answer(b'{"kind":"Status","details":{"retryAfterSeconds":1000000000000}}', "500 X"),
        500,
        float(MAX_AFTER),
    ),
    "a date": (answer(b"", "500 X", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 500, None),
    "a fraction": (answer(b"", "500 X", Retry_After="0.5"), 500, None),
    "digits of another script": (answer(b"", "500 X", Retry_After="\u0663"), 500, None),
    "a number without end": (answer(b"", "500 X", Retry_After="9" * 400), 500, None),
}  # fmt: skip


@pytest.mark.parametrize("case", STATUSES)
async def test_an_odd_refusal_is_a_refusal(case: str, tmp_path: Path) -> None:
    raw, status, after = STATUSES[case]
    async with serving(raw, tmp_path) as client:
        with pytest.raises(KubeError) as raised:
            await client.get(CONFIGMAPS, "a", "default")
    assert (raised.value.status, raised.value.retry_after) == (status, after)
    assert all(isinstance(cause.get("field", ""), str) for cause in raised.value.causes)
