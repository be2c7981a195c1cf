"""A foreign engine: written from docs/engines/own.md with the standard library, nothing of pdserve.

Its tokens are `w0 w1 ...`; KV is the prompt's number of words, handed over at the KV port.

    PDSERVE_TOKEN=secret PDSERVE_INSTANCE=p0 PDSERVE_ROLE=prefill python own_engine.py 127.0.0.2
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from typing import Any

TOKEN_SECONDS, WORD_SECONDS, LEASE_SECONDS = 0.005, 0.0002, 30.0
MODEL = "own"
GENERATE = ("/v1/completions", "/v1/chat/completions")
Head = dict[str, str]


def digest(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


class Answer(Exception):  # noqa: N818 (most are no errors)
    """Ends a request with a reply."""

    def __init__(self, status: int, value: Any = None, headers: Head | None = None) -> None:
        super().__init__(status)
        self.status, self.value, self.headers = status, value, headers or {}


def wrong(status: int, message: str, **headers: str) -> Answer:
    error = {"message": message, "type": "error", "param": None, "code": str(status)}
    return Answer(status, {"error": error}, {k.replace("_", "-"): v for k, v in headers.items()})


class OwnEngine:
    """One instance."""

    def __init__(self, role: str, name: str, token: str = "secret", slots: int = 4) -> None:
        self.role, self.name, self.slots = role, name, slots
        self.host, self.port, self.kv_port = "127.0.0.1", 0, 0
        self.control = {digest(token)}
        self.request: set[str] = set()
        self.required = self.draining = self.linked = False
        self.table: dict[str, Any] = {"version": 0, "instances": []}
        self.up: set[str] = set()
        self.held: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self.running = self.epoch = self.steps = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.servers: list[asyncio.Server] = []

    async def start(self) -> OwnEngine:
        http = await asyncio.start_server(self.connection, self.host, self.port)
        kv = await asyncio.start_server(self.kv_connection, self.host, self.kv_port)
        self.servers = [http, kv]
        self.port, self.kv_port = (s.sockets[0].getsockname()[1] for s in self.servers)
        return self

    async def stop(self) -> None:
        for server in self.servers:
            server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # --- slots ---

    def used(self) -> int:
        return self.running + len(self.held)

    def hints(self) -> Head:
        free = max(0, self.slots - self.used())
        return {
            "x-pdserve-slots": f"{free}/{self.slots}",
            "x-pdserve-free-in-ms": "0" if free else "50",
            "x-pdserve-epoch": str(self.epoch),
        }

    def refuse(self, reason: str, status: int = 503) -> Answer:
        return wrong(status, f"refused: {reason}", x_pdserve_reject=reason)

    def admit(self, headers: Head) -> None:
        """Take a slot, or refuse."""
        if self.draining:
            raise self.refuse("draining")
        if not self.linked:
            raise self.refuse("not_ready")
        if int(headers.get("x-pdserve-deadline-ms", "1000")) <= 0:
            raise self.refuse("deadline")
        if self.used() >= self.slots:
            raise self.refuse("full" if self.role == "prefill" else "decode_full")
        self.running += 1
        self.epoch += 1

    def free(self, name: str) -> int | None:
        """The KV of this name is held no more."""
        words, timer = self.held.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
            self.epoch += 1
        return words

    # --- HTTP ---

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        answer = gone = None
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            headers["authorization"] = next(
                (line[15:] for line in lines if line.lower().startswith("authorization: ")), ""
            )
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = lines[0].split(" ")
            answer = asyncio.create_task(self.answered(method, path, headers, body, writer))
            gone = asyncio.create_task(reader.read(1))
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await self.ended(answer, gone)
            self.tasks.discard(task)
            writer.close()

    async def ended(self, *tasks: asyncio.Task[Any] | None) -> None:
        for task in filter(None, tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task

    async def answered(
        self, method: str, path: str, headers: Head, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        more: Head = {}
        try:
            await self.handle(method, path, headers, body, writer)
        except Answer as answer:
            if path in GENERATE or path.endswith("/release"):
                more = self.hints()
            await self.reply(writer, path, answer.status, {**more, **answer.headers}, answer.value)

    async def reply(
        self, writer: asyncio.StreamWriter, path: str, status: int, headers: Head, value: Any
    ) -> None:
        raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        raw = b"" if value is None else raw
        kind = "text/plain" if isinstance(value, str) else "application/json"
        lines = {"content-type": kind, "content-length": str(len(raw)), "connection": "close"}
        head = "".join(f"{k}: {v}\r\n" for k, v in {**lines, **headers}.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + raw)
        await writer.drain()

    def allowed(self, headers: Head, known: set[str]) -> None:
        scheme, _, token = headers["authorization"].partition(" ")
        if scheme.lower() != "bearer" or digest(token) not in known:
            raise wrong(401, "a credential is required")

    async def handle(
        self, method: str, path: str, headers: Head, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if path in GENERATE:
            if self.required:
                self.allowed(headers, self.request)
            self.admit(headers)
            try:
                await self.generate(path, headers, self.parsed(body), writer)
            finally:
                self.running, self.epoch = self.running - 1, self.epoch + 1
            return
        if path == "/health":
            raise Answer(200, {})
        if path == "/readyz":
            raise Answer(200 if self.linked and not self.draining else 503, {})
        if path == "/metrics":
            raise Answer(200, f"own_slots {self.slots}\nown_steps_total {self.steps}\n")
        if path == "/v1/models":
            raise Answer(200, {"object": "list", "data": [{"id": MODEL}]})
        if path == "/pdserve/v1/info":
            raise Answer(200, {"instance": self.name, "role": self.role})
        if path == "/pdserve/v1/release":
            self.allowed(headers, self.request or self.control)
            self.free(self.parsed(body).get("request_id", ""))
            raise Answer(204)
        if path.startswith("/pdserve/v1/"):
            self.allowed(headers, self.control | set(self.granted("control")))
            raise self.controlled(path, body)
        raise wrong(404, f"no such path: {path}")

    def parsed(self, body: bytes) -> dict[str, Any]:
        try:
            value = json.loads(body)
        except ValueError as error:
            raise wrong(400, f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise wrong(400, "an object is required")
        return value

    # --- control ---

    def granted(self, use: str) -> list[str]:
        found: list[str] = self.table.get("credentials", {}).get(use, [])
        return found

    def controlled(self, path: str, body: bytes) -> Answer:
        if path.endswith("/peers"):
            return self.take(self.parsed(body))
        if path.endswith("/links"):
            down = {p["id"]: "not verified" for p in self.peers() if p["id"] not in self.up}
            report = {"version": self.table["version"], "up": sorted(self.up), "down": down}
            return Answer(200, {**report, "credentials": 1, "grant": ""})
        self.draining = True
        report = {"executing": self.running, "holding": len(self.held), "streams": self.running}
        return Answer(200, report)

    def take(self, table: dict[str, Any]) -> Answer:
        if table["version"] <= self.table["version"] and table != self.table:
            return wrong(409, "there is a newer table")
        if (self.name, self.role) not in [(p["id"], p["role"]) for p in table["instances"]]:
            return wrong(422, "the table does not name this instance")
        self.table = table
        self.request, self.required = set(self.granted("request")), False
        self.required = table.get("credentials", {}).get("required", False)
        self.up &= {p["id"] for p in self.peers()}
        task = asyncio.create_task(self.link())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return Answer(200, {"version": table["version"]})

    def peers(self) -> list[dict[str, Any]]:
        return [p for p in self.table["instances"] if p["role"] != self.role]

    async def link(self) -> None:
        while {p["id"] for p in self.peers()} - self.up:
            for peer in self.peers():
                with contextlib.suppress(OSError):
                    if await self.at_kv_port(peer["transfer"], "WHO") == peer["id"]:
                        self.up.add(peer["id"])
            await asyncio.sleep(0.05)
        self.linked = True

    # --- KV port: one line there, one line back ---

    async def at_kv_port(self, address: str, line: str) -> str:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"{line}\n".encode())
            return (await reader.readline()).decode().strip()
        finally:
            writer.close()

    async def kv_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked, _, name = (await reader.readline()).decode().strip().partition(" ")
        given = self.name if asked == "WHO" else str(self.free(name) or "")
        writer.write(f"{given}\n".encode())
        writer.close()

    # --- legs ---

    async def generate(
        self, path: str, headers: Head, body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        params = body.get("kv_transfer_params") or {}
        if self.role == "prefill":
            raise await self.prefilled(path, headers, body)
        words = 0
        if params.get("remote_address") in [p["transfer"] for p in self.peers()]:
            with contextlib.suppress(OSError, ValueError):
                given = f"GIVE {params['remote_request_id']}"
                words = int(await self.at_kv_port(params["remote_address"], given))
        if not words:
            raise self.refuse("kv_failed", 502)
        if not body.get("stream"):
            await asyncio.sleep(TOKEN_SECONDS * body["max_tokens"])
            self.steps += body["max_tokens"]
            raise Answer(200, self.whole(path, body["max_tokens"], words), self.hints())
        await self.stream(path, body["max_tokens"], words, writer)

    async def prefilled(self, path: str, headers: Head, body: dict[str, Any]) -> Answer:
        words = len(str(body.get("prompt") or body.get("messages")).split())
        await asyncio.sleep(WORD_SECONDS * words)
        name = headers.get("x-request-id", "")
        timer = asyncio.get_running_loop().call_later(LEASE_SECONDS, self.free, name)
        self.held[name] = words, timer
        address = f"{self.host}:{self.kv_port}"
        kv = {"remote_address": address, "remote_request_id": name}
        return Answer(200, {**self.whole(path, 1, words), "kv_transfer_params": kv})

    def chunk(self, path: str, text: str, reason: str | None, part: str = "delta") -> Any:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if path.endswith("/chat/completions"):
            choice[part] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {"id": "own-1", "object": "completion", "model": MODEL, "choices": [choice]}

    def whole(self, path: str, tokens: int, words: int) -> Any:
        text = " ".join(f"w{i}" for i in range(tokens))
        return {**self.chunk(path, text, "length", "message"), "usage": self.usage(tokens, words)}

    def usage(self, tokens: int, words: int) -> dict[str, int]:
        return {"prompt_tokens": words, "completion_tokens": tokens, "total_tokens": words + tokens}

    async def stream(
        self, path: str, tokens: int, words: int, writer: asyncio.StreamWriter
    ) -> None:
        head = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        lines = "".join(f"{k}: {v}\r\n" for k, v in {**head, **self.hints()}.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode())
        for i in range(tokens):
            self.steps += 1
            last = "length" if i == tokens - 1 else None
            await self.event(writer, json.dumps(self.chunk(path, f"w{i} ", last)))
            await asyncio.sleep(TOKEN_SECONDS)
        usage = {**self.chunk(path, "", None), "choices": [], "usage": self.usage(tokens, words)}
        await self.event(writer, json.dumps(usage))
        await self.event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def event(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()


async def main() -> None:
    token = os.environ.get("PDSERVE_TOKEN", "")
    role, name = os.environ["PDSERVE_ROLE"], os.environ["PDSERVE_INSTANCE"]
    engine = OwnEngine(role, name, token)
    engine.host, engine.port, engine.kv_port = sys.argv[1], 8000, 5600
    await engine.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
