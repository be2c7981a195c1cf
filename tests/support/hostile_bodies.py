"""Hostile request bodies, and a driver that sends them and counts what comes back.

`bodies(seed)` yields `(path, body)` pairs for ever: at least nine of ten are mutated (values of
wrong types, huge and deep ones, bytes changed in transit); the rest are honest. The same seed gives
the same bodies. `attack` sends them over keep-alive connections, and `Tally` says what was seen:
a client may be refused, but a 5xx other than `deadline_infeasible` or a connection closed without
an answer is a fault of the service.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENOUGH = 20
"""Faults after which an attack has shown what it can."""
DEEP = b"[" * 260 + b"]" * 260
FIRST_LINE: tuple[tuple[str, bytes], ...] = (
    (COMPLETIONS, b'{"model":"%m","prompt":"x","min_tokens":null}'),
    (COMPLETIONS, b'{"model":"%m","prompt":"x","user":' + DEEP + b"}"),
    (CHAT, b'{"model":"%m","messages":[{"role":"user","content":"x"}],"min_tokens":null}'),
    (CHAT, b'{"model":"%m","messages":[{"role":"user","content":' + DEEP + b"}]}"),
    (COMPLETIONS, b'{"model":"%m","prompt":"x","messages":5}'),
    (CHAT, b'{"model":"%m","messages":5}'),
)
"""Bodies that once left a ticket without an owner, or had no right answer."""

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1.5, 1e308, "", "x", "\x00", "é\U0001f600" * 20,
    "x" * 3000, [], {}, [None], [[1, 2], ["a"]], [{}] * 20, {"a": {"b": [1]}}, [1, -5, 2**40],
    {"type": "text", "text": 5}, [{"type": "image_url", "image_url": {}}], "false", "NaN",
)  # fmt: skip
_FIELDS = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "stream",
    "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs", "temperature", "top_p",
    "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "user", "tools", "tool_choice",
    "response_format", "suffix", "kv_transfer_params", "priority", "request_id", "metadata",
)  # fmt: skip


def bodies(seed: int, model: str = "tiny") -> Iterator[tuple[str, bytes]]:
    """Endless `(path, body)`; one in 25 is a `FIRST_LINE` body."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.04:
            path, raw = rng.choice(FIRST_LINE)
            yield path, raw.replace(b"%m", model.encode())
            continue
        path, body = honest(rng, model)
        if rng.random() < 0.08:
            yield path, _dumped(body)
            continue
        yield path, _mutated(rng, body)


def honest(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """A body that must be served."""
    words = " ".join(rng.choice(("one", "two", "three")) for _ in range(rng.randint(1, 20)))
    body: dict[str, Any] = {"model": model, "max_tokens": rng.randint(1, 4)}
    if rng.random() < 0.3:
        body["stream"] = True
    if rng.random() < 0.5:
        return COMPLETIONS, {**body, "prompt": words}
    return CHAT, {**body, "messages": [{"role": "user", "content": words}]}


def _mutated(rng: random.Random, body: dict[str, Any]) -> bytes:
    kind = rng.random()
    if kind < 0.6:
        for _ in range(rng.randint(1, 3)):
            body[rng.choice(_FIELDS)] = copy.deepcopy(rng.choice(_VALUES))
        if rng.random() < 0.3 and isinstance(body.get("messages"), list):
            target = rng.choice(body["messages"]) if body["messages"] else None
            if isinstance(target, dict):
                target[rng.choice(("role", "content", "name", "tool_calls"))] = copy.deepcopy(
                    rng.choice(_VALUES)
                )
        return _dumped(body)
    if kind < 0.7:
        deep = rng.choice((30, 120, 260, 900, 3000))
        open_, close = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        raw = _dumped(body)[:-1] + b',"%b":' % rng.choice(_FIELDS).encode()
        return raw + open_ * deep + b"1" + close * deep + b"}"
    raw_bytes = bytearray(_dumped(body))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(raw_bytes))
        change = rng.randrange(4)
        if change == 0:
            raw_bytes[place] = rng.randrange(256)
        elif change == 1:
            del raw_bytes[place : place + rng.randint(1, 9)]
        elif change == 2:
            raw_bytes[place:place] = raw_bytes[place : place + 20]
        else:
            raw_bytes[place:place] = rng.choice(
                (b"null", b"1e999", b"-", b'"', b"\xff", b"[", b"{")
            )
        if not raw_bytes:
            return b""
    return bytes(raw_bytes)


def _dumped(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


@dataclass
class Tally:
    """What an attack saw. `faults`: answers that no body may get, with the body."""

    first_line: int = 0
    """Bodies sent with `min_tokens: null` or nested 260 deep."""
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, status: int, reply: bytes, body: bytes) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        if status >= 500 and not (status == 503 and b"deadline_infeasible" in reply):
            self.faults.append((f"{status}: {reply[:300]!r}", body))


async def attack(
    host: str, port: int, seed: int, count: int, *, model: str = "tiny", connections: int = 4,
    patience: float = 60.0,
) -> Tally:  # fmt: skip
    """Send `count` bodies over so many connections; `patience`: seconds for one answer.

    Ends early after `ENOUGH` faults: a service that hangs would otherwise be waited for each time.
    """
    tally, source = Tally(), bodies(seed, model)
    first = {raw.replace(b"%m", model.encode()) for _, raw in FIRST_LINE[:4]}
    left = iter(range(count))

    async def client() -> None:
        reader = writer = None
        for _ in left:
            if len(tally.faults) >= ENOUGH:
                break
            path, body = next(source)
            tally.first_line += body in first
            try:
                async with asyncio.timeout(patience):
                    if writer is None:
                        reader, writer = await asyncio.open_connection(host, port)
                    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                    writer.write(head.encode() + body)
                    assert reader is not None
                    status, reply, close = await read_reply(reader)
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                tally.faults.append((type(error).__name__, body))
                if writer is not None:
                    writer.close()
                writer = None
                continue
            tally.add(status, reply, body)
            if close:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client())
    return tally


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """`(status, body, connection closes)` of one HTTP/1.1 reply."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    close = b"connection: close" in head
    if b"transfer-encoding: chunked" in head:
        parts = []
        while size := int((await reader.readline()) or b"0", 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, b"".join(parts), close
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return status, await reader.readexactly(length), close
