"""Form of a decode's replies: OpenAI completions, whole and as a stream of their chunks."""

from __future__ import annotations

from typing import Final

from pdserve.enginecheck.probe import MAX_DEPTH, MAX_REPLY
from pdserve.enginecheck.subject import UnkeptError
from pdserve.engines.flow import token_count
from pdserve.terms.json import JsonMap
from pdserve.wire.bounds import WireError, parse_json

_DONE: Final = b"[DONE]"


def check_whole(raw: bytes, most: int, *, chat: bool) -> str:
    """What a whole reply has; `most` tokens were asked for.

    Raises:
        UnkeptError: it is no completion.
    """
    value = _object(raw, "the reply")
    choice = _choice(value, "the reply")
    message = choice.get("message")
    text = message.get("content") if chat and isinstance(message, dict) else choice.get("text")
    where = "choices[0].message.content" if chat else "choices[0].text"
    _expect(isinstance(text, str), f"the reply has no text in {where}")
    _expect(isinstance(choice.get("finish_reason"), str), "the reply has no finish_reason")
    made = _usage(value, "the reply", most)
    return f"{made} tokens, usage and finish_reason {choice['finish_reason']!r}"


def check_stream(raw: bytes, most: int, *, chat: bool) -> str:
    """What a stream has; `most` tokens were asked for.

    Raises:
        UnkeptError: it is no stream of chunks with usage at its end.
    """
    events = [e for e in raw.replace(b"\r\n", b"\n").split(b"\n\n") if e.strip()]
    datas = [_data(e) for e in events if not e.startswith(b":")]
    _expect(datas and datas[-1] == _DONE, "the stream does not end with data: [DONE]")
    chunks = [_object(d, "a chunk") for d in datas[:-1]]
    wrong = next((c for c in chunks if "error" in c), None)
    _expect(wrong is None, f"the stream has an error: {str(wrong)[:120]}")
    reasons, texts = [], 0
    for chunk in chunks:
        if not chunk.get("choices"):
            continue
        choice = _choice(chunk, "a chunk")
        part = choice.get("delta") if chat else choice.get("text")
        _expect(isinstance(part, dict if chat else str),
                f"a chunk has no {'delta' if chat else 'text'}")  # fmt: skip
        texts += 1
        reasons += [r for r in [choice.get("finish_reason")] if r is not None]
    _expect(texts, "the stream has no chunk with text")
    _expect(
        len(reasons) == 1, f"the stream has {len(reasons)} finish_reasons: give one, at the end"
    )
    made = _usage(chunks[-1], "the last chunk", most)
    return f"{texts} chunks, one finish_reason, usage of {made} tokens, [DONE]"


def _data(event: bytes) -> bytes:
    lines = event.split(b"\n")
    _expect(all(line.startswith(b"data:") for line in lines if line and not line.startswith(b":")),
            f"the event {event[:60]!r} is no data: line")  # fmt: skip
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def _object(raw: bytes, what: str) -> JsonMap:
    try:
        value = parse_json(raw, max_bytes=MAX_REPLY, max_depth=MAX_DEPTH)
    except WireError as error:
        raise UnkeptError(f"{what}: {error}") from error
    if not isinstance(value, dict):
        raise UnkeptError(f"{what} is no JSON object: {raw[:60]!r}")
    return value


def _choice(value: JsonMap, what: str) -> JsonMap:
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise UnkeptError(f"{what} has no choices[0]")
    return choice


def _usage(value: JsonMap, what: str, most: int) -> int:
    usage = value.get("usage")
    given = usage if isinstance(usage, dict) else {}
    try:
        prompt, made = (token_count(given.get(n)) for n in ("prompt_tokens", "completion_tokens"))
    except ValueError as error:
        raise UnkeptError(f"{what}: usage: {error}") from error
    _expect(prompt > 0 and 0 < made <= most, f"{what} has a usage of {prompt} prompt tokens "
            f"and {made} made (at most {most}): give prompt_tokens, completion_tokens")  # fmt: skip
    return made


def _expect(kept: object, message: str) -> None:
    if not kept:
        raise UnkeptError(message)
