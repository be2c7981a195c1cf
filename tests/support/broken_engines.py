"""Engines that break one rule of docs/engines/own.md each."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from tests.own_engine.own_engine import Answer, Head, OwnEngine, wrong


class Path(OwnEngine):
    """Answers one path its own way."""

    path, answer = "", Answer(500)

    async def handle(self, method: str, path: str, headers: Head, body: bytes, writer: Any) -> None:
        if path == self.path:
            raise self.answer
        await super().handle(method, path, headers, body, writer)


def at(path: str, status: int, value: Any = None) -> type[OwnEngine]:
    return type("At", (Path,), {"path": path, "answer": Answer(status, value)})


class TakesAnyTable(OwnEngine):
    def take(self, table: dict[str, Any]) -> Answer:
        if (self.name, self.role) in [(p["id"], p["role"]) for p in table["instances"]]:
            self.table["version"] = 0
            return super().take(table)
        return Answer(200, {"version": table["version"]})


class TakesOlderTables(OwnEngine):
    def take(self, table: dict[str, Any]) -> Answer:
        if table["instances"]:
            self.table = {**self.table, "version": 0}
        return super().take(table)


class ForgetsCredentials(OwnEngine):
    def allowed(self, headers: Head, known: set[str]) -> None:
        pass


class NeedsNoneForLegs(OwnEngine):
    def take(self, table: dict[str, Any]) -> Answer:
        answer = super().take(table)
        self.required = False
        return answer


class NeverLinks(OwnEngine):
    async def link(self) -> None:
        pass


class FailsOnNonsense(OwnEngine):
    def parsed(self, body: bytes) -> dict[str, Any]:
        try:
            return super().parsed(body)
        except Answer as answer:
            raise Answer(500, answer.value) from answer


class SaysNothingOfNonsense(OwnEngine):
    def parsed(self, body: bytes) -> dict[str, Any]:
        try:
            return super().parsed(body)
        except Answer as answer:
            raise Answer(400, {"detail": "no"}) from answer


class IgnoresDeadlines(OwnEngine):
    def admit(self, headers: Head) -> None:
        super().admit({k: v for k, v in headers.items() if not k.endswith("deadline-ms")})


class HasNoHints(OwnEngine):
    def hints(self) -> Head:
        return {}


class AlwaysFree(OwnEngine):
    def hints(self) -> Head:
        return {**super().hints(), "x-pdserve-slots": f"{self.slots}/{self.slots}"}


class OneEpoch(OwnEngine):
    def hints(self) -> Head:
        return {**super().hints(), "x-pdserve-epoch": "1"}


class HoldsNothing(OwnEngine):
    async def prefilled(self, path: str, headers: Head, body: dict[str, Any]) -> Answer:
        answer = await super().prefilled(path, headers, body)
        del answer.value["kv_transfer_params"]
        return answer


class CountsNothing(OwnEngine):
    def usage(self, tokens: int, words: int) -> dict[str, int]:
        return {}


class KeepsReleased(OwnEngine):
    async def handle(self, method: str, path: str, headers: Head, body: bytes, writer: Any) -> None:
        if path.endswith("/release"):
            raise Answer(204)
        await super().handle(method, path, headers, body, writer)


class Queues(OwnEngine):
    """Waits for a slot."""

    async def handle(self, method: str, path: str, headers: Head, body: bytes, writer: Any) -> None:
        while path.endswith("completions") and self.used() >= self.slots and not self.draining:
            if headers.get("x-pdserve-deadline-ms") == "0":
                break
            await asyncio.sleep(0.02)
        await super().handle(method, path, headers, body, writer)


class TakesMore(OwnEngine):
    def used(self) -> int:
        return 0


class OtherReason(OwnEngine):
    def refuse(self, reason: str, status: int = 503) -> Answer:
        return super().refuse("busy" if reason.endswith("full") else reason, status)


class GoesOnAlone(OwnEngine):
    """Does not see that a client has gone."""

    async def ended(self, *tasks: asyncio.Task[Any] | None) -> None:
        if tasks[0] is not None and not tasks[0].done():
            self.tasks.add(tasks[0])
            await super().ended(*tasks[1:])
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((tasks[0],))
            return
        await super().ended(*tasks)

    async def prefilled(self, path: str, headers: Head, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(0.2)
        return await super().prefilled(path, headers, body)

    async def event(self, writer: Any, data: str) -> None:
        with contextlib.suppress(ConnectionError):
            await super().event(writer, data)
        await asyncio.sleep(0.05)


class EndsWithoutDone(OwnEngine):
    async def event(self, writer: Any, data: str) -> None:
        if data != "[DONE]":
            await super().event(writer, data)


class StreamsWithoutUsage(OwnEngine):
    async def event(self, writer: Any, data: str) -> None:
        if "usage" not in data:
            await super().event(writer, data)


class TwoReasons(OwnEngine):
    async def event(self, writer: Any, data: str) -> None:
        await super().event(
            writer, data.replace('"finish_reason": null', '"finish_reason": "stop"')
        )


class NeverHandsOver(OwnEngine):
    """Gives KV and keeps the slot."""

    async def kv_connection(self, reader: Any, writer: Any) -> None:
        kept = dict(self.held)
        await super().kv_connection(reader, writer)
        self.held = kept


class PullsFirst(OwnEngine):
    """A decode that takes the KV before it looks whether it has time."""

    async def handle(self, method: str, path: str, headers: Head, body: bytes, writer: Any) -> None:
        if path.endswith("completions") and headers.get("x-pdserve-deadline-ms") == "0":
            params = self.parsed(body)["kv_transfer_params"]
            given = f"GIVE {params['remote_request_id']}"
            await self.at_kv_port(params["remote_address"], given)
        await super().handle(method, path, headers, body, writer)


class InventsKv(OwnEngine):
    async def at_kv_port(self, address: str, line: str) -> str:
        return await super().at_kv_port(address, line) or "7"


class LosesKvLoudly(OwnEngine):
    def refuse(self, reason: str, status: int = 503) -> Answer:
        return wrong(500, "no KV") if reason == "kv_failed" else super().refuse(reason, status)


class TakesWhileDraining(OwnEngine):
    def admit(self, headers: Head) -> None:
        drains, self.draining = self.draining, False
        try:
            super().admit(headers)
        finally:
            self.draining = drains


class CutsAtDrain(OwnEngine):
    def controlled(self, path: str, body: bytes) -> Answer:
        answer = super().controlled(path, body)
        if path.endswith("/drain"):
            for task in [t for t in self.tasks if t is not asyncio.current_task()]:
                task.cancel()
        return answer


class NeverDrained(OwnEngine):
    def controlled(self, path: str, body: bytes) -> Answer:
        answer = super().controlled(path, body)
        if path.endswith("/drain"):
            answer.value["holding"] = 1
        return answer


class SaysThatNothingRuns(OwnEngine):
    def controlled(self, path: str, body: bytes) -> Answer:
        answer = super().controlled(path, body)
        if path.endswith("/drain"):
            answer.value = dict.fromkeys(answer.value, 0)
        return answer

    async def event(self, writer: Any, data: str) -> None:
        await super().event(writer, data)
        await asyncio.sleep(0.1)


class ReadyWhileDraining(OwnEngine):
    async def handle(self, method: str, path: str, headers: Head, body: bytes, writer: Any) -> None:
        if path == "/readyz" and self.draining:
            raise Answer(200)
        await super().handle(method, path, headers, body, writer)
