"""Checks a request body before anything is spent on it, and says what would be right.

Only what the gateway itself must know or P/D cannot do is checked here; the rest is the engine's
business, whose 4xx answers are passed on unchanged. Raises `ApiError` (400).
"""

from __future__ import annotations

from reprlib import repr as shown

from pdserve.engines.flow import Endpoint
from pdserve.engines.pull_flow import token_limit
from pdserve.forwarding.deadline import PromptSize
from pdserve.gateway.errors import invalid
from pdserve.http1.collector import collector_paused
from pdserve.http1.errors import ApiError
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.calls import PATH_CHAT, PATH_COMPLETIONS

MAX_OUTPUT_TOKENS = 1 << 24
MAX_CHOICES = 128
"""Of one request, over all of its prompts: the bound of `n` in the OpenAI API."""
MAX_SEED = 2**63 - 1
"""Of the last choice: engines take seeds of 64 bits with a sign."""
MAX_DEPTH = 64
"""Lists and objects inside one another: JSON schemas of tools are the deepest honest ones."""
FEW_MARKS = 32
"""Marks up to which `count_mark` looks for each by itself."""


def check_prompt_bytes(endpoint: Endpoint, size: PromptSize, most: int) -> None:
    """Check that a prompt fits into a context of `most` bytes of text (0: not known).

    A token stands for at least one byte and a message has at least one token, so ids and messages
    count as bytes.

    Raises:
        ApiError: 400, it does not fit.
    """
    total = size.text + size.tokens + size.messages
    if 0 < most < total:
        raise ApiError(
            400,
            f"the prompt has {total} bytes of text, ids and messages, and at most {most} fit "
            "into the context",
            code="context_length_exceeded",
            param="messages" if endpoint == "chat" else "prompt",
        )


def check_body_bytes(endpoint: Endpoint, size: int, most: int) -> None:
    """Check that a body of `size` bytes may hold a prompt that fits; `most` bytes, 0: not known.

    Engines check it as well; here it costs no parsing, which would delay all other requests.

    Raises:
        ApiError: 400, no prompt in it fits any context.
    """
    if 0 < most < size:
        raise ApiError(
            400,
            f"the body has {size} bytes; one with a prompt that fits has at most {most}",
            code="context_length_exceeded",
            param="messages" if endpoint == "chat" else "prompt",
        )


def parsed_size(raw: bytes) -> int:
    """About how many bytes the legs' bodies and the values of a body take, beside itself.

    Text takes as much again for each leg, and up to four bytes a character where one is not ASCII;
    a list, an object or a number takes more than its JSON.
    """
    wide = not raw.isascii() or (b"\\" in raw and b"\\u" in raw)
    values = 64 * count_mark(raw, b"[") + 240 * count_mark(raw, b"{") + 40 * count_mark(raw, b",")
    return (7 if wide else 3) * len(raw) + values


def count_mark(raw: bytes, mark: bytes) -> int:
    """`raw.count(mark)`; of few marks in long text in a tenth of the time: `find` skips text."""
    at = -1
    for found in range(FEW_MARKS):
        at = raw.find(mark, at + 1)
        if at < 0:
            return found
    return FEW_MARKS + raw.count(mark, at + 1)


def parse_body(endpoint: Endpoint, raw: bytes) -> JsonObject:
    """The body as a dict that both legs can be made from.

    Raises:
        ApiError: 400, a field is wrong or P/D cannot do it; the message says what would be right.
    """
    try:
        with collector_paused(len(raw)):
            body = parse_json(raw, max_bytes=len(raw), max_depth=MAX_DEPTH)
    except WireError as error:
        raise ApiError(400, f"the body cannot be read: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise invalid(None, f"the body must be a JSON object, not {type(body).__name__}")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise invalid("model", f"model must be a non-empty string, not {shown(body.get('model'))}")
    other, belongs = ("prompt", PATH_COMPLETIONS) if endpoint == "chat" else ("messages", PATH_CHAT)
    if body.get(other) is not None:
        raise invalid(other, f"{other} belongs to {belongs}")
    if endpoint == "chat":
        _check_messages(body.get("messages"))
    else:
        _check_prompt(body.get("prompt"))
        if body.get("echo") and body.get("logprobs") is not None:
            raise invalid("echo", "echo with logprobs needs prompt logprobs: not served by P/D")
    _check_kv_moves(body)
    _check_counts(body)
    _check_stream(body)
    return body


def _check_kv_moves(body: JsonMap) -> None:
    """Refuse what makes an engine leave the KV of its leg where it is, or not hold it."""
    if body.get("use_beam_search"):
        # vLLM answers a prefill's leg without KV, which would look like the prefill's fault.
        raise invalid("use_beam_search", "beam search moves no KV: not served by P/D")
    if body.get("prompt_logprobs") is not None:
        why = "the prompt would be computed anew by the decode: not served by P/D"
        raise invalid("prompt_logprobs", f"prompt_logprobs: {why}")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "messages must be a non-empty list of {role, content} objects")
    for position, message in enumerate(messages):
        known = isinstance(message, dict)
        if not known or not isinstance(message.get("role"), str):
            path = f"messages[{position}]" + (".role" if known else "")
            raise invalid(path, f"must be an object with a role, not {shown(message)}")


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list) or not prompt:
        raise invalid("prompt", "prompt must be a string or a non-empty list of token ids")
    if set(map(type, prompt)) == {int}:
        return
    for position, one in enumerate(prompt):
        if not isinstance(one, (str, list)):
            path = f"prompt[{position}]"
            raise invalid(path, f"must be a string or a list of token ids, not {shown(one)}")


def prompts_of(body: JsonMap) -> list[object]:
    """The prompts of a checked body; a chat counts as one."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and set(map(type, prompt)) != {int}:
        return prompt
    return [prompt]


def _check_counts(body: JsonObject) -> None:
    count = body.get("n")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise invalid("n", f"n must be an integer >= 1, not {shown(count)}")
    choices = (count or 1) * len(prompts_of(body))
    if choices > MAX_CHOICES:
        raise invalid("n", f"at most {MAX_CHOICES} choices per request, not {choices}")
    seed = body.get("seed")
    if count is not None and count > 1 and type(seed) is int and seed + count - 1 > MAX_SEED:
        # The k-th choice has the seed + k.
        raise invalid("seed", f"seed + n - 1 must be at most {MAX_SEED}, not {seed + count - 1}")
    best_of = body.get("best_of")
    if best_of is not None and (isinstance(best_of, bool) or best_of != (count or 1)):
        raise invalid("best_of", f"best_of={shown(best_of)}: choices are not ranked, leave it out")
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not (1 <= value <= MAX_OUTPUT_TOKENS)
        ):
            raise invalid(name, f"{name} must be an integer >= 1, not {shown(value)}")
    value = body.get("min_tokens", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid("min_tokens", f"min_tokens must be an integer >= 0, not {shown(value)}")
    limit = token_limit(body)
    if limit is not None and value > limit:
        # A prefill's leg asks for one token of both, so that an engine finds out late or never.
        raise invalid("min_tokens", f"min_tokens must be at most {limit}, the limit of tokens")


def _check_stream(body: JsonObject) -> None:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid("stream", f"stream must be true or false, not {shown(stream)}")
    options = body.get("stream_options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise invalid("stream_options", f"must be an object, not {shown(options)}")
    for name, value in options.items():
        if not isinstance(value, bool | None):
            raise invalid(f"stream_options.{name:.80}", f"must be true or false: {shown(value)}")
    if not stream:
        raise invalid("stream_options", "stream_options is only allowed with stream: true")
