"""Validate OpenAI completion and chat bodies into a `GenerationRequest` and the form of its reply.

Two stages: `read` checks a body in bounded time, `RequestDraft.request` takes the tokens. Between
them the caller tokenises, off the event loop where the text is long.

What would change the answer but is not implemented is refused with its reason (`parameters`).
Every message names the field, the value and what would be right. `null` is the same as absence.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pdserve.http1.errors import ApiError
from pdserve.refengine.api import parameters
from pdserve.refengine.api.fields import boolean, integer, number
from pdserve.refengine.api.handover import RemoteLeg, remote_of, replay_of, wants_hand_over
from pdserve.refengine.config import EngineRole
from pdserve.refengine.errors import field_error
from pdserve.refengine.model.chat_template import ChatMessage, ChatTemplateError
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.sampler import SamplingParams
from pdserve.refengine.runtime.request import GenerationRequest, LocalLeg, Replay
from pdserve.terms.json import JsonMap
from pdserve.wire.bounds import WireError, parse_json

Kind = Literal["completion", "chat"]
Body = JsonMap
DEFAULT_COMPLETION_TOKENS = 16
MAX_STOPS = 16
TEMPLATE_SLACK = 4096
"""Bytes allowed beyond the bound of the context, for what a tokenizer may normalise away."""


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How the client wants its answer."""

    kind: Kind
    stream: bool
    include_usage: bool
    cached_tokens: int | None
    token_ids: bool = False
    """Events of a stream end with the ids of their tokens (`wire.calls.HEADER_EVENT_IDS`)."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What requests are checked against.

    `context` in tokens. `prompt_bytes`: UTF-8 bytes of prompt text that `context` tokens can
    hold at most (`prompt_bound`).
    """

    role: EngineRole
    model_name: str
    context: int
    prompt_bytes: int


def prompt_bound(context: int, longest_token: int) -> int:
    """Bytes of prompt text above which no text fits into `context` tokens."""
    return context * longest_token + TEMPLATE_SLACK


@dataclass(frozen=True, slots=True)
class RequestDraft:
    """A checked body whose prompt is not tokenised yet.

    `tokenise` gives the prompt's tokens and may run on any thread; it takes time in proportion
    to `text_bytes`, 0 where the tokens are given or are elsewhere.
    """

    kind: Kind
    options: ReplyOptions
    tokenise: Callable[[], list[int]]
    text_bytes: int
    _body: Body
    _hand_over: bool
    _remote: RemoteLeg | None
    _replay: Replay | None
    _eos: tuple[int, ...]
    _vocab: int
    _limits: RequestLimits
    _local: LocalLeg | None

    @property
    def hand_over(self) -> bool:
        """Whether this is a prefill leg."""
        return self._hand_over

    def request(
        self, request_id: str, budget: float | None, prompt: list[int]
    ) -> GenerationRequest:
        """The request, with the token ids that `tokenise` gave.

        `budget`: seconds left to the deadline; None without one.

        Raises:
            ApiError: 400, a field is wrong; the message names it.
        """
        body, remote, context = self._body, self._remote, self._limits.context
        replayed = self._replay.tokens if self._replay else ()
        count = remote.tokens if remote else len(prompt) + len(replayed)
        if count + 1 > context:
            raise ApiError(
                400,
                f"the prompt has {count} tokens; with one of output at most {context} fit",
                param=_prompt_field(self.kind),
                code="context_length_exceeded",
            )
        request = GenerationRequest(
            id=request_id,
            prompt=() if remote else (*prompt, *replayed),
            sampling=_sampling(self.kind, body, remote),
            max_tokens=self._max_tokens(count - len(replayed), len(replayed)),
            min_tokens=integer(body, "min_tokens", 0, 0, context),
            ignore_eos=boolean(body, "ignore_eos"),
            eos=self._eos,
            stop_tokens=_stop_tokens(body, self._vocab),
            stop_strings=_stop_strings(body),
            hand_over=self._hand_over,
            remote=remote.kv if remote else None,
            budget=budget,
            replay=self._replay,
            cache_salt=parameters.cache_salt(body),
            local=self._local,
        )
        if not self._hand_over and request.min_tokens > request.max_tokens:
            raise field_error(
                "min_tokens", request.min_tokens, f"at most max_tokens = {request.max_tokens}"
            )
        return request

    def _max_tokens(self, prompt: int, replayed: int) -> int:
        """Output tokens, those that are replayed among them; a prefill chooses one more."""
        if self._hand_over:
            return replayed + 1
        return _max_tokens(self.kind, self._body, prompt, self._limits.context)


def read(
    kind: Kind, raw: bytes, model: LoadedModel, limits: RequestLimits, *, token_ids: bool = False,
    local: LocalLeg | None = None,
) -> RequestDraft:  # fmt: skip
    """Check a body as far as it goes without its prompt's tokens; bounded work.

    `token_ids`: see `ReplyOptions`. `local`: as in `GenerationRequest`.

    Raises:
        ApiError: 400 for a bad field, 404 for another model's name.
    """
    body = _object(raw)
    _check_model(body, limits.model_name)
    parameters.check(body)
    hand_over = wants_hand_over(body, limits.role)
    remote = remote_of(body, limits.role, model.config.vocab, local=local is not None)
    replay = None
    if hand_over or remote is not None:
        replay = replay_of(body, remote, model.config.vocab)
    # Also on a decode leg: a bad prompt is the client's fault wherever it is noticed.
    tokenise, size = _prompt(kind, body, model, limits)
    stream = boolean(body, "stream")
    cached = remote.cached_tokens if remote else None
    return RequestDraft(
        kind,
        ReplyOptions(kind, stream, _include_usage(body, stream), cached, token_ids and stream),
        # A decode leg has the prompt's KV and needs no tokens.
        list if remote else tokenise,
        0 if remote else size,
        body,
        hand_over,
        remote,
        replay,
        model.config.eos,
        model.config.vocab,
        limits,
        local,
    )


def too_long(kind: Kind, size: int, limits: RequestLimits) -> ApiError:
    """400: a prompt of `size` bytes, or a body that cannot hold a shorter one."""
    return ApiError(
        400,
        f"the prompt has {size} bytes; {limits.context} tokens hold at most {limits.prompt_bytes}",
        param=_prompt_field(kind),
        code="context_length_exceeded",
    )


def _prompt_field(kind: Kind) -> str:
    return "messages" if kind == "chat" else "prompt"


def _object(raw: bytes) -> Body:
    try:
        body = parse_json(raw, max_bytes=len(raw))
    except WireError as error:
        raise ApiError(
            400, f"body is not JSON that is read: {error}", code="invalid_json"
        ) from error
    if not isinstance(body, dict):
        raise ApiError(400, f"body is a JSON {type(body).__name__}, not an object")
    return body


def _check_model(body: Body, name: str) -> None:
    given = body.get("model")
    if not isinstance(given, str):
        raise field_error("model", given, f"a string is required; this instance serves {name!r}")
    if given != name:
        raise ApiError(
            404,
            f"model {given!r} does not exist; this instance serves {name!r}",
            param="model",
            code="model_not_found",
        )


def _prompt(
    kind: Kind, body: Body, model: LoadedModel, limits: RequestLimits
) -> tuple[Callable[[], list[int]], int]:
    """How to get the prompt's tokens, and the bytes of text to tokenise."""
    if kind == "chat":
        messages = _messages(body, limits)
        size = _bounded(kind, (m.content for m in messages), limits)
        return lambda: _rendered(model, messages), size
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        text, size = value, _bounded(kind, (value,), limits)

        def encode() -> list[int]:
            tokens = model.tokenizer.encode(text)
            if not tokens:
                raise field_error("prompt", text, "at least one token is required")
            return tokens

        return encode, size
    if isinstance(value, list) and value and all(type(t) is int for t in value):
        bad = next((t for t in value if not 0 <= t < model.config.vocab), None)
        if bad is not None:
            raise field_error("prompt", bad, f"token ids are 0 to {model.config.vocab - 1}")
        return value.copy, 0
    if isinstance(value, list) and len(value) > 1:
        raise field_error("prompt", value, "one prompt per request; send several requests")
    raise field_error("prompt", value, "a string or a non-empty list of token ids is required")


def _rendered(model: LoadedModel, messages: list[ChatMessage]) -> list[int]:
    try:
        return model.tokenizer.encode_chat(messages)
    except ChatTemplateError as error:
        message = f"the model's chat template refuses the messages: {error}"
        raise ApiError(400, message, param="messages", code="chat_template") from error


def _bounded(kind: Kind, texts: Iterable[str], limits: RequestLimits) -> int:
    size = sum(len(t) if t.isascii() else len(t.encode()) for t in texts)
    if size > limits.prompt_bytes:
        raise too_long(kind, size, limits)
    return size


def _messages(body: Body, limits: RequestLimits) -> list[ChatMessage]:
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise field_error("messages", value, "a non-empty list is required")
    if len(value) >= limits.context:
        # Each has at least one token.
        message = f"{len(value)} messages; the prompt and one token of output fit into"
        raise ApiError(
            400, f"{message} {limits.context}", param="messages", code="context_length_exceeded"
        )
    return [_message(f"messages[{i}]", m) for i, m in enumerate(value)]


def _message(path: str, value: object) -> ChatMessage:
    if not isinstance(value, dict):
        raise field_error(path, value, "an object with role and content is required")
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise field_error(f"{path}.role", role, "one of system, developer, user, assistant")
    parameters.check_message(path, value)
    if content is None and ("content" in value or role == "assistant"):
        content = ""
    if isinstance(content, list):
        content = "".join(_part(f"{path}.content[{i}]", p) for i, p in enumerate(content))
    if not isinstance(content, str):
        raise field_error(f"{path}.content", content, "a string or a list of text parts")
    return ChatMessage("system" if role == "developer" else role, content)


def _part(path: str, value: object) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        text = value.get("text")
        if isinstance(text, str):
            return text
    raise field_error(path, value, 'only {"type": "text", "text": ...} is known')


def _max_tokens(kind: Kind, body: Body, prompt: int, context: int) -> int:
    room = context - prompt
    default = room if kind == "chat" else min(DEFAULT_COMPLETION_TOKENS, room)
    name = (
        "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    )
    value = integer(body, name, max(1, default), 1, 1 << 31)
    if body.get(name) is not None and value > room >= 1:
        raise ApiError(
            400,
            f"{name}: {value} tokens of output and {prompt} of prompt do not fit into {context}; "
            f"at most {room} are possible",
            param=name,
            code="context_length_exceeded",
        )
    return value


def _sampling(kind: Kind, body: Body, remote: RemoteLeg | None) -> SamplingParams:
    seed = body.get("seed")
    if remote is not None:
        seed = remote.seed
    elif seed is None:
        seed = secrets.randbits(63)
    elif type(seed) is not int:
        raise field_error("seed", seed, "an integer is required")
    return SamplingParams(
        temperature=number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=number(body, "top_p", 1.0, 1e-6, 1.0),
        top_k=max(0, integer(body, "top_k", 0, -1, 1 << 31)),
        seed=seed,
        logprobs=_logprobs(kind, body),
    )


def _logprobs(kind: Kind, body: Body) -> int | None:
    if kind == "completion":
        if body.get("logprobs") is None:
            return None
        return integer(body, "logprobs", 0, 0, 20)
    if not boolean(body, "logprobs"):
        if body.get("top_logprobs"):
            raise field_error("top_logprobs", body["top_logprobs"], "needs logprobs: true")
        return None
    return integer(body, "top_logprobs", 0, 0, 20)


def _stop_strings(body: Body) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise field_error("stop", value, "a non-empty string or a list of them is required")
    if len(stops) > MAX_STOPS:
        raise field_error("stop", value, f"at most {MAX_STOPS} strings")
    return tuple(stops)


def _stop_tokens(body: Body, vocab: int) -> tuple[int, ...]:
    value = body.get("stop_token_ids")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(t) is int and 0 <= t < vocab for t in value):
        raise field_error("stop_token_ids", value, f"a list of ids from 0 to {vocab - 1}")
    return tuple(value)


def _include_usage(body: Body, stream: bool) -> bool:
    value = body.get("stream_options")
    if value is None:
        return False
    if not stream:
        raise field_error("stream_options", value, "only allowed with stream: true")
    if not isinstance(value, dict):
        raise field_error("stream_options", value, "an object is required")
    return boolean(value, "include_usage", "stream_options.")
