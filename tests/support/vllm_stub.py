"""A vLLM server as its HTTP interface behaves (0.32, NIXL connector), without a model.

Written on raw sockets, so that a test can make it misbehave below HTTP too. What vLLM does and
this stub keeps: a stream's head leaves before its first token; a request whose client goes away is
aborted; a decode that refuses a leg frees the KV that its prefill holds; KV is held until it is
pulled, freed so, or its lease ends; `max_queued` bounds the requests in flight (503).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

MODEL = "m"
_numbers = itertools.count(1)


@dataclass
class Fabric:
    """Stubs by the address at which they hand KV over."""

    holders: dict[tuple[str, int], VllmStub] = field(default_factory=dict)

    def free(self, params: dict[str, Any]) -> bool:
        """KV is pulled, or freed by a refusal; False when it is not held any more."""
        holder = self.holders.get((params["remote_host"], params["remote_port"]))
        return holder is not None and holder.let_go(params["remote_request_id"])


class VllmStub:
    """One server. Script it through its public attributes."""

    def __init__(self, fabric: Fabric, *, max_queued: int = 1000, tokens: int = 4) -> None:
        self.fabric = fabric
        self.host = "127.0.0.1"
        self.max_queued = max_queued
        self.tokens = tokens
        self.healthy = True
        self.token_gate: asyncio.Event | None = None
        """When set, every token waits for it."""
        self.token_seconds = 0.0
        self.breaks_pulls = False
        """KV cannot be loaded: the request fails after it was accepted."""
        self.raw: bytes | None = None
        """What is written instead of any answer to a generation request; the connection ends."""
        self.cut_after: int | None = None
        """A stream's connection is lost after so many tokens."""
        self.held: set[str] = set()
        self.running = 0
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.events: Counter[str] = Counter()
        self.written = 0
        """Bytes of streams that the other side took."""
        self.more_params: dict[str, Any] = {}
        """Of a connector, in the parameters that a prefill answers with."""
        self.padding = 0
        """Bytes of text in each token."""
        self.steps = 0
        self._server: asyncio.Server | None = None
        self._side: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = self.side_port = 0

    # --- life ---

    async def start(self) -> VllmStub:
        self._server = await asyncio.start_server(self._client, self.host, self.port)
        self._side = await asyncio.start_server(
            lambda _, writer: writer.close(), self.host, self.side_port
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.side_port = self._side.sockets[0].getsockname()[1]
        self.fabric.holders[self.host, self.side_port] = self
        return self

    async def kill(self) -> None:
        """As kill -9 looks from outside; KV is gone."""
        self.held.clear()
        for server in (self._server, self._side):
            if server is not None:
                server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def let_go(self, name: str) -> bool:
        """A decode has pulled this KV, or refused its leg."""
        found = name in self.held
        self.held.discard(name)
        return found

    # --- HTTP ---

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = asyncio.create_task(self._answer(head[0], headers, body, writer))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                        await answer
                    self.events["aborted"] += 1
                    return
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                if not answer.result() or headers.get("connection") == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; False: the connection ends."""
        path = line.split()[1]
        if path == "/health":
            return self._send(writer, 200 if self.healthy else 503, b"")
        if path == "/metrics":
            return self._send(writer, 200, self.exposition().encode(), "text/plain")
        if path == "/v1/models":
            models = {"object": "list", "data": [{"id": MODEL, "max_model_len": 2048}]}
            return self._send(writer, 200, orjson.dumps(models))
        self.events["requests"] += 1
        self.headers.append(headers)
        if self.raw is not None:
            writer.write(self.raw)
            await writer.drain()
            return False
        return await self._generate(path, headers, orjson.loads(body), writer)

    def exposition(self) -> str:
        return (
            "# TYPE vllm:iteration_tokens_total histogram\n"
            f'vllm:iteration_tokens_total_count{{engine="0",model_name="m"}} {self.steps}.0\n'
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {self.running}.0\n'
        )

    async def _generate(
        self, path: str, headers: dict[str, str], body: dict[str, Any],
        writer: asyncio.StreamWriter,
    ) -> bool:  # fmt: skip
        params = body.get("kv_transfer_params") or {}
        pulls = params.get("do_remote_prefill")
        refusal = None
        if self.running >= self.max_queued:
            refusal = 503, "Request queue is full"
        elif body["model"] != MODEL:
            refusal = 404, f"The model `{body['model']}` does not exist."
        elif body.get("temperature", 0) < 0:
            refusal = 400, "temperature must be non-negative"
        if refusal is not None:
            self.events[f"refused {refusal[0]}"] += 1
            if pulls:
                self.fabric.free(params)
            return self._send(writer, refusal[0], error_body(refusal[1]))
        self.seen.append(body)
        self.running += 1
        try:
            loaded = not pulls or (not self.breaks_pulls and self.fabric.free(params))
            if body.get("stream"):
                return await self._stream(path, body, writer, loaded=loaded)
            for _ in range(1 if not loaded else body.get("max_tokens") or self.tokens):
                await self._token()
            if not loaded:
                return self._send(writer, 500, error_body("KV load failure"))
            return self._send(writer, 200, orjson.dumps(self._whole(path, headers, body)))
        finally:
            self.running -= 1

    async def _token(self) -> None:
        if self.token_gate is not None:
            await self.token_gate.wait()
        self.steps += 1
        await asyncio.sleep(self.token_seconds)

    def _whole(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        made = body.get("max_tokens") or self.tokens
        text = "".join(f"t{i} " for i in range(made))
        value = _chunk(path, text, "length", whole=True)
        value["usage"] = _usage(made)
        self.computed(body, value)
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            name = f"cmpl-{headers.get('x-request-id', 'none')}-0-{next(_numbers):08x}"
            self.held.add(name)
            value["kv_transfer_params"] = {
                "do_remote_prefill": True, "do_remote_decode": False,
                "remote_block_ids": [[1, 2]], "remote_engine_id": f"engine-{self.port}",
                "remote_request_id": name, "remote_host": self.host,
                "remote_port": self.side_port, "tp_size": 1, "remote_num_tokens": 7,
                "remote_blocks_expiry_time": None, "transfer_mode": "pull",
                **self.more_params,
            }  # fmt: skip
        return value

    def computed(self, body: dict[str, Any], value: dict[str, Any]) -> None:
        """A prompt was computed, and will be answered so."""

    async def _stream(
        self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter, *, loaded: bool
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        made = body.get("max_tokens") or self.tokens
        if not loaded:
            await self._token()
            await self._event(writer, orjson.loads(error_body("KV load failure")))
            made = 0
        for i in range(made):
            if i == self.cut_after:
                writer.transport.abort()
                return False
            await self._token()
            await self._event(writer, _chunk(path, f"t{i} " + "x" * self.padding))
        if made:
            await self._event(writer, _chunk(path, "", "length"))
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {**_chunk(path, ""), "choices": [], "usage": _usage(made)}
                await self._event(writer, usage)
        await self._piece(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _event(self, writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
        await self._piece(writer, b"data: " + orjson.dumps(value) + b"\n\n")

    async def _piece(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        self.written += len(data)

    def _send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json"
    ) -> bool:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return True


def error_body(message: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "x", "param": None, "code": 1}})


def _usage(made: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 7, "completion_tokens": made, "total_tokens": 7 + made,
        "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip


def _chunk(path: str, text: str, reason: str | None = None, whole: bool = False) -> dict[str, Any]:
    chat = path.endswith("/chat/completions")
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
    message = {"role": "assistant", "content": text}
    if chat:
        choice["message" if whole else "delta"] = message
    else:
        choice["text"] = text
    kind = ("chat.completion" if whole else "chat.completion.chunk") if chat else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}
