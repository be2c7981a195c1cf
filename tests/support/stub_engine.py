"""A scriptable engine at the network boundary: speaks the Reference contract, computes nothing.

A test double for gateway tests only. It keeps the contract's promises about slots (reject before
any queue, a prefill slot is held until pulled or released, hints on every reply) and lets a test
decide when and how it breaks them. Tokens are `t0 t1 t2 ...`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer
from pdserve.terms import Role
from pdserve.wire.routes import RouteInstance

TOKEN = "stub-token"


@dataclass
class Cluster:
    """Where decodes find the prefill that holds a request's KV."""

    holders: dict[str, StubEngine] = field(default_factory=dict)


class StubEngine:
    """One instance. Script it through its public attributes."""

    def __init__(
        self, cluster: Cluster, role: Role, name: str, slots: int = 1, prefetch: int = 2
    ) -> None:
        self.cluster = cluster
        self.role = role
        self.name = name
        self.slots = slots
        self.capacity = slots + (prefetch if role == "decode" else 0)
        self.prefill_seconds = 0.0
        self.token_seconds = 0.0
        self.default_tokens = 4
        self.prompt_tokens = 7
        self.stop_at_first = False
        self.hints = True
        self.early_head = True
        self.hint_override: tuple[bytes, bytes] | None = None
        self.script: list[str] = []
        """What happens to the next requests: `ok`, `500`, `400`, `full`, `draining`,
        `deadline`, `tpot`, `reset`, `hang`, `cut:N` (decode: connection lost after N tokens),
        `error:N` (error event), `kv_failed`, `kv_corrupt`, `empty`, `forgets` (it keeps no KV)."""
        self.gate: asyncio.Event | None = None
        """When set, prefill waits for it before it answers."""
        self.reply_gate: asyncio.Event | None = None
        """When set, a prefill that holds KV waits for it before it replies."""
        self.breaks_on = ""
        """A request with this in its prompt breaks its connection; `mortal`: the whole engine."""
        self.mortal = False
        self.whole: bytes | None = None
        """What a decode answers instead of a whole completion."""
        self.events_instead: list[bytes] | None = None
        """What a decode streams instead of its tokens."""
        self.running = 0
        self.held_up = 0
        """Streams that wait for their reader."""
        self._prefills: dict[str, asyncio.Task[None]] = {}
        self.held: set[str] = set()
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.events: Counter[str] = Counter()
        self.released: list[str] = []
        self.max_used = 0
        self._epoch = 0
        limits = ClientLimits(body=8 << 20, memory=1 << 30)
        self._server = HttpServer(self._handle, limits, self._bug)
        self.port = 0
        self.bugs: list[Exception] = []

    # --- life ---

    async def start(self) -> StubEngine:
        self.port = await self._server.start("127.0.0.1", self.port)
        return self

    async def kill(self) -> None:
        """As kill -9 looks from outside: connections reset, nothing listens."""
        for request_id in list(self.held):
            self.cluster.holders.pop(request_id, None)
        for connection in list(self._server.connections):
            connection.abort()
        await self._server.stop(0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def route(self, domains: dict[str, str] | None = None) -> RouteInstance:
        return RouteInstance(self.name, self.role, self.endpoint, self.slots, domains or {})

    # --- contract ---

    @property
    def used(self) -> int:
        return self.running + len(self.held)

    def _hint(self) -> tuple[tuple[bytes, bytes], ...]:
        if not self.hints:
            return ()
        if self.hint_override is not None:
            slots, free_in = self.hint_override
        else:
            slots = b"%d/%d" % (max(0, self.capacity - self.used), self.capacity)
            free_in = b"0" if self.used < self.capacity else b"5"
        self._epoch += 1
        return (
            (b"x-pdserve-slots", slots),
            (b"x-pdserve-free-in-ms", free_in),
            (b"x-pdserve-epoch", str(self._epoch).encode()),
        )

    async def _handle(self, request: HttpRequest, reply: Reply) -> None:
        if request.path.startswith("/pdserve/"):
            await self.control(request, reply)
            return
        self.events["attempts"] += 1
        body = orjson.loads(request.body)
        self.seen.append(body)
        self.headers.append(request.headers)
        step = self.script.pop(0) if self.script else "ok"
        if step == "reset":
            return  # the server aborts a connection that got no reply
        if self.breaks_on and self.breaks_on in str(body.get("prompt")):
            self.events["broken"] += 1
            if self.mortal:
                self._death = asyncio.create_task(self.kill())
            return
        if step == "hang":
            await asyncio.Event().wait()
        if step.isdigit():
            error = ApiError(int(step), f"scripted {step}", kind="scripted")
            reply.send(error.status, error.body(), "application/json", self._hint())
            return
        if step in ("draining", "deadline", "tpot"):
            self._reject(reply, step.encode())
            return
        if step in ("kv_failed", "kv_corrupt"):
            self._reject(reply, step.encode(), 502)
            return
        if step == "full" or self.used >= self.capacity:
            self._reject(reply, b"full" if self.role == "prefill" else b"decode_full")
            return
        chat = request.path.endswith("/chat/completions")
        if self.role == "prefill":
            await self._prefill(request, body, chat, reply, keeps=step != "forgets")
        else:
            early = request.headers.get(b"x-pdserve-early-head") == b"1"
            await self._decode(body, chat, reply, step, early=early and self.early_head)

    def _reject(self, reply: Reply, reason: bytes, status: int = 503) -> None:
        self.events[f"rejected {reason.decode()}"] += 1
        error = ApiError(status, "rejected", kind="overloaded_error", code=reason.decode())
        headers = (*self._hint(), (b"x-pdserve-reject", reason))
        reply.send(status, error.body(), "application/json", headers)

    async def _prefill(
        self, request: HttpRequest, body: dict[str, Any], chat: bool, reply: Reply, *, keeps: bool
    ) -> None:
        self.running += 1
        self.max_used = max(self.max_used, self.used)
        request_id = request.headers[b"x-request-id"].decode()
        task = asyncio.current_task()
        assert task is not None
        self._prefills[request_id] = task
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.prefill_seconds:
                await asyncio.sleep(self.prefill_seconds)
        finally:
            self.running -= 1
            del self._prefills[request_id]
        value = completion(chat, "t0", 1, self.prompt_tokens, "length")
        if self.stop_at_first:
            value["choices"][0]["finish_reason"] = "stop"
            value["kv_transfer_params"] = None
        else:
            if keeps:
                self.held.add(request_id)
                self.cluster.holders[request_id] = self
            value["kv_transfer_params"] = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_request_id": request_id,
                "pdserve": {"first_token_ids": [0]},
            }
        self.max_used = max(self.max_used, self.used)
        if self.reply_gate is not None:
            await self.reply_gate.wait()
        reply.send(200, orjson.dumps(self.amended(value, body)), "application/json", self._hint())

    def amended(self, value: dict[str, Any], _body: dict[str, Any]) -> dict[str, Any]:
        return value

    async def control(self, request: HttpRequest, reply: Reply) -> None:
        if request.path != "/pdserve/v1/release":
            reply.send(404, b"{}", "application/json")
            return
        if request.headers.get(b"authorization") != f"Bearer {TOKEN}".encode():
            reply.send(401, b"{}", "application/json")
            return
        request_id = orjson.loads(request.body)["request_id"]
        self.released.append(request_id)
        if request_id in self._prefills:
            self._prefills[request_id].cancel()
        self.free(request_id)
        reply.send(204, b"", "application/json", self._hint())

    def free(self, request_id: str) -> bool:
        """KV was pulled or released; False when it is not held here."""
        if request_id not in self.held:
            return False
        self.held.discard(request_id)
        self.cluster.holders.pop(request_id, None)
        return True

    async def _decode(
        self, body: dict[str, Any], chat: bool, reply: Reply, step: str, *, early: bool
    ) -> None:
        request_id = body["kv_transfer_params"]["remote_request_id"]
        holder = self.cluster.holders.get(request_id)
        if holder is None or not holder.free(request_id):
            self._reject(reply, b"kv_failed", 502)
            return
        self.running += 1
        self.max_used = max(self.max_used, self.used)
        if early:
            reply.interim(102)
        try:
            await self._tokens(body, chat, reply, step)
        finally:
            self.running -= 1

    async def _tokens(self, body: dict[str, Any], chat: bool, reply: Reply, step: str) -> None:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.default_tokens
        kind, _, at = step.partition(":")
        if kind == "empty":
            return
        if not body.get("stream"):
            for _ in range(limit - 1):
                await self._pace()
            if kind == "cut":
                return
            if self.whole is not None:
                reply.send(200, self.whole, "application/json", self._hint())
                return
            text = "".join(f"t{i} " for i in range(limit))
            value = completion(chat, text, limit, self.prompt_tokens, "length")
            reply.send(200, orjson.dumps(value), "application/json", self._hint())
            return
        if self.events_instead is not None:
            reply.start(200, "text/event-stream", b"".join(self.events_instead), self._hint())
            reply.end()
            return
        flows = asyncio.Event()
        flows.set()
        reply.on_flow(flows.clear, flows.set)
        for i in range(limit):
            if not flows.is_set():
                self.held_up += 1
                await flows.wait()
                self.held_up -= 1
            if kind == "cut" and i == int(at):
                return
            if kind == "error" and i == int(at):
                reply.write(b'data: {"error":{"message":"scripted","type":"server_error"}}\n\n')
                break
            if i:
                await self._pace()
            data = _event(_chunk(chat, f"t{i} "))
            if reply.started:
                reply.write(data)
            else:
                reply.start(200, "text/event-stream", data, self._hint())
        else:
            reply.write(_event(_chunk(chat, "", "length")))
            if (body.get("stream_options") or {}).get("include_usage"):
                chunk = _chunk(chat, "")
                chunk["choices"] = []
                chunk["usage"] = _usage(limit, self.prompt_tokens)
                reply.write(_event(chunk))
        reply.write(b"data: [DONE]\n\n")
        reply.end()

    async def _pace(self) -> None:
        await asyncio.sleep(self.token_seconds)

    def _bug(self, error: Exception) -> None:
        self.bugs.append(error)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _usage(tokens: int, prompt_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def completion(
    chat: bool, text: str, tokens: int, prompt_tokens: int, reason: str
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {
        "id": "cmpl-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
        "usage": _usage(tokens, prompt_tokens),
    }


def _chunk(chat: bool, text: str, reason: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    if chat:
        choice["delta"] = {"content": text} if text else {}
    else:
        choice["text"] = text
    return {
        "id": "cmpl-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
    }
