"""Serves one generation request: admit it, follow its events, write the reply."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import orjson

from pdserve.engines.prefix_feed import named_blocks
from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.refengine.api import openai
from pdserve.refengine.api.handover import Held, Sender, reply_params
from pdserve.refengine.api.replies import ReplyWriter
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.runtime.engine import Engine
from pdserve.refengine.runtime.request import (
    Finish,
    GenerationRequest,
    LocalLeg,
    TokenEvent,
)
from pdserve.refengine.runtime.sequence import Sequence
from pdserve.refengine.runtime.slot_claims import SlotClaim
from pdserve.wire import calls
from pdserve.wire.links import largest_body
from pdserve.wire.prefixes import NO_BLOCKS

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
MAX_ID = 128
"""Characters of a client's request id."""
MAX_NAME = MAX_ID + 9
"""Characters of a request's name: its id, made unique where it is in use already."""
MAX_BUDGET_MS = 1 << 40
"""Longer deadlines are as good as none."""
TOKENISERS = 2
"""Threads that tokenise beside the event loop; the library gives up the GIL meanwhile."""
TOKENISE_HERE = 2048
"""Bytes of text that are tokenised at once on the event loop: 1 ms, less than a thread costs."""

_REQUEST_ID = calls.HEADER_REQUEST_ID.encode()

log = logging.getLogger(__name__)


class Generator:
    """The two generation endpoints of one instance."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        engine: Engine,
        sender: Sender,
        ready: Callable[[], bool],
    ) -> None:
        self._config, self._model, self.engine = config, model, engine
        self._sender, self._ready = sender, ready
        self.open_replies = 0
        """Accepted generation requests whose answer is not complete."""
        bound = openai.prompt_bound(engine.context, model.tokenizer.longest_token)
        self._limits = openai.RequestLimits(config.role, config.model_name, engine.context, bound)
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(TOKENISERS, "tokenise")

    def handle(self, kind: openai.Kind, http_request: HttpRequest, reply: Reply) -> None:
        """Answer now (rejections, errors) or when the engine has something to say."""
        try:
            self._handle(kind, http_request, reply)
        except ApiError as error:
            reply.headers = self.headers()
            reply.error(error)

    def headers(self, name: str = "") -> Headers:
        """Slot hints, and the request's name where it has one."""
        hints = self.engine.hint().headers()
        return (*hints, (_REQUEST_ID, name.encode("latin-1"))) if name else hints

    @property
    def body_bytes(self) -> int:
        """Bytes above which no request body holds a prompt that fits."""
        return largest_body(self._limits.prompt_bytes)

    @property
    def prompt_bytes(self) -> int:
        """Bytes of UTF-8 above which no prompt text fits (`wire.links`)."""
        return self._limits.prompt_bytes

    def _handle(self, kind: openai.Kind, incoming: HttpRequest, reply: Reply) -> None:
        # Before anything is parsed: a rejection must cost as little as possible.
        reason = self.engine.refusal() or (None if self._ready() else calls.REJECT_NOT_READY)
        if reason is not None:
            raise self.engine.rejections.reject(reason, f"instance: {reason.replace('_', ' ')}")
        budget = _budget(incoming)
        if budget is not None and budget <= 0:
            raise self.engine.rejections.too_late(0.0, budget)
        name = self._request_id(incoming)
        if incoming.size > len(incoming.body):
            raise openai.too_long(kind, incoming.size, self._limits)
        token_ids = incoming.header(calls.HEADER_EVENT_IDS) == "1"
        draft = openai.read(
            kind, incoming.body, self._model, self._limits, token_ids=token_ids,
            local=self._local_prefill(incoming),
        )  # fmt: skip
        call = _Call(self, reply, draft, name, budget, _wants_early_head(incoming))
        if draft.hand_over:
            call.named = named_blocks(incoming)
        call.begin()

    def tokenised(
        self, draft: openai.RequestDraft, then: Callable[[Future[list[int]]], None]
    ) -> Future[list[int]]:
        """Tokenise beside the event loop; `then` is called on it."""
        future = self._threads.submit(draft.tokenise)
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(then, done))
        return future

    def close(self) -> None:
        """End the tokenising threads; what they run is thrown away."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def writer(self, request: GenerationRequest, options: openai.ReplyOptions) -> ReplyWriter:
        """Who builds the reply to a request."""
        return ReplyWriter(request, options, self._config.model_name, self._model.tokenizer)

    def _request_id(self, incoming: HttpRequest) -> str:
        """The client's id; made unique where it is in use already."""
        given = incoming.header(calls.HEADER_REQUEST_ID) or ""
        if len(given) > MAX_ID or not given.isprintable():
            raise ApiError(400, f"{calls.HEADER_REQUEST_ID}: at most {MAX_ID} printable characters")
        fresh = given or uuid.uuid4().hex
        return f"{fresh}-{uuid.uuid4().hex[:8]}" if self.engine.knows(fresh) else fresh

    def _local_prefill(self, incoming: HttpRequest) -> LocalLeg | None:
        """What a decode leg says of a prompt that is computed here; None: it is pulled."""
        if self._config.role != "decode" or incoming.header(calls.HEADER_LOCAL_PREFILL) != "1":
            return None
        tpot = _milliseconds(incoming, calls.HEADER_TPOT_MS)
        if tpot is not None and tpot <= 0:
            raise ApiError(400, f"{calls.HEADER_TPOT_MS}: more than 0 ms a token are required")
        return LocalLeg(tpot)

    def reply_headers(self, sequence: Sequence) -> Headers:
        """Those of an answer; of a prompt computed at a decode also what else a prefill says."""
        request = sequence.request
        headers = self.headers(request.id)
        if request.local is None:
            return headers
        return (
            *headers,
            (calls.HEADER_PROMPT_TOKENS.encode(), b"%d" % request.prompt_tokens),
            (calls.HEADER_CACHED_TOKENS.encode(), b"%d" % sequence.cached),
            (calls.HEADER_SEED.encode(), b"%d" % request.sampling.seed),
        )

    def kv_params(self, sequence: Sequence, event: TokenEvent) -> dict[str, object] | None:
        """For a prefill's reply: where the KV is, None when nothing is held."""
        if event.finish is Finish.STOP:
            return None
        return reply_params(
            sequence.request,
            event.sampled,
            sequence.cached_of_prompt,
            Held(self._config.lease_seconds, self.engine.handoff.generation(sequence.request.id)),
            self._sender,
        )


class _Call:
    """One generation request: claimed, tokenised, admitted, answered."""

    def __init__(
        self,
        owner: Generator,
        reply: Reply,
        draft: openai.RequestDraft,
        name: str,
        budget: float | None,
        early_head: bool,
    ) -> None:
        self._owner, self._reply, self._draft = owner, reply, draft
        self._name, self._budget, self._early_head = name, budget, early_head
        self.named = NO_BLOCKS
        """Its prompt as the gateway names its blocks."""
        self._since = time.monotonic()
        self._claim: SlotClaim | None = None
        self._sequence: Sequence | None = None
        self._tokens: Future[list[int]] | None = None
        self._open = False

    def begin(self) -> None:
        """Take a slot; tokenise, then admit. Raises ApiError when refused at once."""
        self._claim = self._owner.engine.claim(self._name, self._released)
        self._open = True
        self._owner.open_replies += 1
        self._reply.on_leave = self._leave
        if self._draft.text_bytes <= TOKENISE_HERE:
            self._guarded(lambda: self._admit(self._draft.tokenise()))
        else:
            self._tokens = self._owner.tokenised(self._draft, self._tokenised)

    def answered(self) -> None:
        """The last of the answer is about to be written, or the client has left."""
        if self._open:
            self._open = False
            self._owner.open_replies -= 1

    def unread(self) -> None:
        """The client left without reading a prefill's reply: its KV cannot be pulled."""
        self._owner.engine.handoff.release(self._name)

    def _tokenised(self, future: Future[list[int]]) -> None:
        if not self._open or future.cancelled():
            return  # released, or the client left
        self._guarded(lambda: self._admit(future.result()))

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except ApiError as error:
            self._refuse(error)
        except Exception:
            log.exception("request %s failed", self._name)
            self._refuse(ApiError(500, "internal error", kind="server_error"))

    def _refuse(self, error: ApiError) -> None:
        self._leave()
        if not self._reply.ended:
            self._reply.headers = self._owner.headers(self._name)
            self._reply.error(error)

    def _admit(self, tokens: list[int]) -> None:
        owner, claim, left = self._owner, self._claim, self._budget
        if claim is None:
            raise ValueError("a call is admitted after it was begun")
        if left is not None:
            left -= time.monotonic() - self._since
        request = self._draft.request(self._name, left, tokens)
        request = dataclasses.replace(request, named=self.named)
        options = self._draft.options
        writer = owner.writer(request, options)
        listener: _Listener
        if options.stream and not request.hand_over:
            listener = _Stream(self, owner, self._reply, writer)
        else:
            decodes = request.remote is not None or request.local is not None
            early = self._early_head and decodes
            listener = _Whole(self, owner, self._reply, writer, early)
        sequence = owner.engine.admit(claim, request, listener)
        self._sequence = sequence

    def _released(self) -> None:
        self._refuse(ApiError(499, "released", code="released"))

    def _leave(self) -> None:
        """Free everything: the client is gone, or the request is refused."""
        self.answered()
        self._reply.on_leave = None
        if self._tokens is not None:
            self._tokens.cancel()
        if self._claim is not None:
            self._owner.engine.drop(self._claim)
        if self._sequence is not None:
            self._owner.engine.cancel(self._sequence)


class _Listener:
    """Common part of both ways to answer."""

    def __init__(self, call: _Call, owner: Generator, reply: Reply, writer: ReplyWriter) -> None:
        self._call, self._owner, self._reply, self._writer = call, owner, reply, writer

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        raise NotImplementedError

    def failed(self, sequence: Sequence, error: ApiError) -> None:
        self._call.answered()
        self._reply.headers = self._owner.headers(sequence.request.id)
        self._reply.error(error)


class _Whole(_Listener):
    """Answer at the end."""

    def __init__(
        self,
        call: _Call,
        owner: Generator,
        reply: Reply,
        writer: ReplyWriter,
        early_head: bool,
    ) -> None:
        """`early_head`: tell with an interim head that the KV is here, pulled or computed."""
        super().__init__(call, owner, reply, writer)
        self._events: list[TokenEvent] = []
        self._early_head = early_head

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        self._events.append(event)
        if event.finish is None:
            if self._early_head and len(self._events) == 1:
                self._reply.interim(102)
            return
        if sequence.request.remote is None:
            self._writer.cached = sequence.cached_of_prompt
        body = self._writer.whole(self._events)
        if sequence.request.hand_over:
            body[calls.PARAM_KV] = self._owner.kv_params(sequence, event)
        self._call.answered()
        if body.get(calls.PARAM_KV) is not None:
            self._reply.on_unread = self._call.unread
        headers = self._owner.reply_headers(sequence)
        self._reply.send(200, orjson.dumps(body), JSON, headers)


class _Stream(_Listener):
    """Answer token by token; the head goes out with the first."""

    _started = False

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        if sequence.request.remote is None:
            self._writer.cached = sequence.cached_of_prompt
        data = self._writer.chunk(event) or b""
        if event.finish is not None:
            data += self._writer.tail()
        if not self._started:
            self._started = True
            headers = self._owner.reply_headers(sequence)
            self._reply.start(200, EVENT_STREAM, data, headers)
            data = b""
        if event.finish is not None:
            self._call.answered()
            self._reply.end(data)
        elif data:
            self._reply.write(data)

    def failed(self, sequence: Sequence, error: ApiError) -> None:
        self._call.answered()
        if not self._started:
            self._reply.headers = self._owner.headers(sequence.request.id)
        self._reply.error(error)


def _wants_early_head(incoming: HttpRequest) -> bool:
    return incoming.http_1_1 and incoming.header(calls.HEADER_EARLY_HEAD) == "1"


def _budget(incoming: HttpRequest) -> float | None:
    return _milliseconds(incoming, calls.HEADER_DEADLINE_MS)


def _milliseconds(incoming: HttpRequest, name: str) -> float | None:
    """Seconds of a header in milliseconds; None without it. Raises ApiError."""
    value = incoming.header(name)
    if value is None:
        return None
    try:
        return max(-MAX_BUDGET_MS, min(int(value), MAX_BUDGET_MS)) / 1000
    except ValueError as error:
        raise ApiError(400, f"{name}: {value!r} is not an integer of milliseconds") from error
