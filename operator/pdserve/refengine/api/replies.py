"""OpenAI reply objects from chosen tokens: whole answers and stream chunks, both kinds.

One `ReplyWriter` per request; it keeps what must add up over chunks (text offsets, counts).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import orjson

from pdserve.refengine.api.openai import ReplyOptions
from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.model.tokenizer import Tokenizer
from pdserve.refengine.runtime.request import GenerationRequest, TokenEvent
from pdserve.terms.json import JsonObject

DONE = b"data: [DONE]\n\n"


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class ReplyWriter:
    """Builds the JSON of one request's answer."""

    def __init__(
        self,
        request: GenerationRequest,
        options: ReplyOptions,
        model_name: str,
        tokenizer: Tokenizer,
    ) -> None:
        self._request, self._options, self._tokenizer = request, options, tokenizer
        self._chat = options.kind == "chat"
        replay = request.replay
        fresh = ("chatcmpl-" if self._chat else "cmpl-") + request.id
        self._base = {
            "id": replay.reply_id if replay else fresh,
            "created": replay.created if replay else int(time.time()),
            "model": model_name,
        }
        self._offset = sum(len(self._text(token)) for token in request.replayed)
        self.count = len(request.replayed)
        self._unmarked: list[int] = []
        """Tokens since the last event."""
        self.cached = options.cached_tokens or 0

    def whole(self, events: Sequence[TokenEvent]) -> JsonObject:
        """A non-streaming answer."""
        self.count = len(self._request.replayed) + len(events)
        text = "".join(e.text for e in events)
        finish = events[-1].finish
        choice: JsonObject = {
            "index": 0,
            "finish_reason": None if finish is None else finish.value,
            "logprobs": self._logprobs(events),
        }
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return self._base | {"object": kind, "choices": [choice], "usage": self.usage()}

    def chunk(self, event: TokenEvent) -> bytes | None:
        """The stream event of one token; None when it shows nothing yet."""
        first = self.count == 0
        self.count += 1
        if self._options.token_ids:
            self._unmarked.append(event.sampled.token)
        shows = event.text or event.finish or self._request.sampling.logprobs is not None
        if not shows and not first:
            return None
        choice: JsonObject = {
            "index": 0,
            "finish_reason": None if event.finish is None else event.finish.value,
            "logprobs": self._logprobs([event]),
        }
        if self._chat:
            delta: JsonObject = {"role": "assistant"} if first else {}
            choice["delta"] = delta | {"content": event.text}
        else:
            choice["text"] = event.text
        return self._marked(sse(self._stream_object([choice])))

    def _marked(self, event: bytes) -> bytes:
        """The event with the ids of its tokens, where they are asked for."""
        if not self._unmarked:
            return event
        ids, self._unmarked = self._unmarked, []
        return b"%bid: %b\n\n" % (event[:-1], ",".join(map(str, ids)).encode())

    def tail(self) -> bytes:
        """The end of a stream: usage if asked for, then the end mark."""
        if not self._options.include_usage:
            return DONE
        return sse(self._stream_object([]) | {"usage": self.usage()}) + DONE

    def usage(self) -> JsonObject:
        """Token counts so far."""
        prompt = self._request.client_prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.count,
            "total_tokens": prompt + self.count,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def _stream_object(self, choices: list[JsonObject]) -> JsonObject:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        base = self._base | {"object": kind, "choices": choices}
        return base | {"usage": None} if self._options.include_usage else base

    def _logprobs(self, events: Sequence[TokenEvent]) -> JsonObject | None:
        if self._request.sampling.logprobs is None:
            return None
        chosen = [e.sampled for e in events]
        if self._chat:
            return {"content": [self._chat_logprob(s) for s in chosen]}
        offsets = []
        for sampled in chosen:
            offsets.append(self._offset)
            self._offset += len(self._text(sampled.token))
        return {
            "tokens": [self._text(s.token) for s in chosen],
            "token_logprobs": [s.logprob for s in chosen],
            "top_logprobs": [{self._text(t): p for t, p in s.top} for s in chosen],
            "text_offset": offsets,
        }

    def _chat_logprob(self, sampled: Sampled) -> JsonObject:
        top = [self._entry(token, logprob) for token, logprob in sampled.top]
        return self._entry(sampled.token, sampled.logprob) | {"top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> JsonObject:
        raw = self._tokenizer.token_bytes(token)
        return {"token": self._text(token), "logprob": logprob, "bytes": list(raw)}

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")
