"""A stub engine whose decode can compute a prompt by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.continuing_stub import ContinuingStub

from pdserve.http1.errors import ApiError
from pdserve.http1.reply import Reply


class LocalStub(ContinuingStub):
    """`events["local"]` counts the prompts that it computed.

    `knows_local` False: it is of a version that takes such a leg for one without its parameters.
    Step `400 cut`: lost in the middle of an error.
    """

    knows_local = True

    def _hint(self) -> tuple[tuple[bytes, bytes], ...]:
        more = ((b"x-pdserve-prompt-tokens", b"%d" % self.prompt_tokens), (b"x-pdserve-seed", b"5"))
        return (*super()._hint(), *more)

    async def _decode(
        self, body: dict[str, Any], chat: bool, reply: Reply, step: str, *, early: bool
    ) -> None:
        if "kv_transfer_params" in body:
            await super()._decode(body, chat, reply, step, early=early)
            return
        if not self.knows_local or self.headers[-1].get(b"x-pdserve-local-prefill") != b"1":
            error = ApiError(400, "this instance only decodes", code="wrong_role")
            reply.send(400, error.body(), "application/json", self._hint())
            return
        if step == "400 cut":
            reply.start(400, "application/json", b'{"error"', self._hint())
            return
        self.events["local"] += 1
        self.running += 1
        self.max_used = max(self.max_used, self.used)
        named = {"remote_request_id": self.headers[-1][b"x-request-id"].decode()}
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.prefill_seconds)
            if early:
                reply.interim(102)
            await self._tokens(body | {"kv_transfer_params": named}, chat, reply, step)
        finally:
            self.running -= 1
