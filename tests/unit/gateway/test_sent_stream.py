"""What a gateway keeps of an open stream, and what it makes of it when the decode is lost."""

from __future__ import annotations

import orjson
import pytest

from pdserve.gateway.sent_stream import LAST, MAX_TOKEN_ID, PIECE, KeptMemory, SentStream
from pdserve.gateway.sse import StreamError, StreamMeter

HEAD = {"id": "cmpl-7", "created": 1700000000, "model": "m", "object": "text_completion"}


def event(text: str, *ids: int, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    data = b"data: %b\n" % orjson.dumps({**HEAD, "choices": [choice], "usage": None})
    return data + (b"id: %b\n\n" % ",".join(map(str, ids)).encode() if ids else b"\n")


def sent(*events: bytes, memory: KeptMemory | None = None) -> tuple[SentStream, bytes]:
    """A stream of which these events came, and what of them went to the client."""
    stream = SentStream(memory or KeptMemory())
    stream.kv = {"pdserve": {}}
    meter, out = StreamMeter(strip_usage=False, sent=stream), b""
    for number, one in enumerate(events):
        ready = meter.feed(one, float(number))
        if number == 0:
            stream.keep(10)
        if ready:
            stream.passed_on(ready)
        out += ready
    return stream, out


def test_ids_are_taken_out_and_kept_in_order() -> None:
    stream, out = sent(event("a", 5), event("b", 6, 7) + event("c", 8), event("", 9))
    assert out == event("a") + event("b") + event("c") + event("")
    part = stream.part()
    assert (part.tokens, part.reply_id, part.created) == ((5, 6, 7, 8, 9), "cmpl-7", 1700000000)


@pytest.mark.parametrize("size", range(1, 40))
def test_pieces_of_any_size_give_the_same(size: int) -> None:
    whole = event("a\n\nid: 99", 5) + event("b", 6, 7) + event("c", 8) + b"data: [DONE]\n\n"
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    stream = SentStream(KeptMemory())
    meter = StreamMeter(strip_usage=False, sent=stream)
    out = b"".join(meter.feed(piece, 0.0) for piece in pieces)
    assert out == event("a\n\nid: 99") + event("b") + event("c") + b"data: [DONE]\n\n"
    stream.passed_on(event("c"))
    assert stream.part().tokens == (5, 6, 7, 8)


def test_a_token_whose_event_was_not_whole_is_not_the_clients() -> None:
    stream, out = sent(event("a", 5), event("b", 6)[:-1])
    assert out == event("a")
    assert stream.part().tokens == (5,)


@pytest.mark.parametrize("broken", [b'{"usage":{"completion_tokens":-1}}', b'{"usage":{]}'])
def test_tokens_that_came_with_a_broken_event_are_not_the_clients(broken: bytes) -> None:
    """It gets nothing of a piece that has one in it."""
    stream, _ = sent(event("a", 5), event("b", 6))
    meter = StreamMeter(strip_usage=False, sent=stream)
    with pytest.raises(StreamError):
        meter.feed(event("c", 7) + b"data: %b\n\n" % broken, 3.0)
    assert stream.part().tokens == (5, 6)


@pytest.mark.interpreted
def test_of_a_long_piece_its_end_is_kept() -> None:
    stream, _ = sent(event("a", 5), event("b" * LAST, 6) + event("c", 7) * 200)
    assert len(stream.part().tokens) == 202
    assert stream.part().reply_id == "cmpl-7"
    assert stream.end(None) is None
    sizes = [len(v) for n in SentStream.__slots__ if isinstance(v := getattr(stream, n), bytes)]
    assert max(sizes) <= LAST


def test_without_ids_nothing_is_kept() -> None:
    memory = KeptMemory()
    stream, _ = sent(event("a"), event("b", 6), memory=memory)
    assert not stream.can_go_on
    assert memory.used == 0
    with pytest.raises(ValueError, match="no event"):
        stream.end(None)


def test_what_is_kept_is_bounded_and_given_back() -> None:
    memory = KeptMemory(10 + 2 * PIECE)
    stream, _ = sent(event("a", 5), memory=memory)
    other, _ = sent(event("a", 5), memory=memory)
    assert stream.can_go_on
    assert not other.can_go_on, "the bodies of both and their ids do not fit"
    for token in range(100_000, 101_000):
        stream.add([b"%d" % token])
    assert not stream.can_go_on, "7,000 bytes of ids"
    assert memory.used <= memory.limit
    stream.close()
    other.close()
    assert memory.used == 0


def test_a_stream_whose_last_token_was_passed_on_only_needs_its_end() -> None:
    stream, _ = sent(event("a", 5), event("b", 6, finish="stop"))
    assert stream.end(None) == b"data: [DONE]\n\n"
    counts = {"prompt_tokens": 4, "completion_tokens": stream.count}
    assert counts["completion_tokens"] == 2
    end = stream.end(counts)
    assert end is not None
    last, done = end.split(b"\n\n")[:2]
    assert done == b"data: [DONE]"
    assert orjson.loads(last[6:]) == {**HEAD, "choices": [], "usage": counts}


def test_a_stream_that_has_its_usage_only_needs_the_mark() -> None:
    usage = b"data: %b\n\n" % orjson.dumps({**HEAD, "choices": [], "usage": {}})
    stream, _ = sent(event("a", 5), event("b", 6, finish="stop") + usage)
    assert stream.end({"prompt_tokens": 4}) == b"data: [DONE]\n\n"


def test_a_stream_that_has_its_end_needs_nothing() -> None:
    stream, _ = sent(event("a", 5), event("b", 6, finish="stop") + b"data: [DONE]\n\n")
    assert stream.end(None) == b""


@pytest.mark.parametrize(
    "last",
    [
        b"",
        b": comment\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{}], "id": 5, "created": 1}\n\n',
        b'data: {"choices": [{}], "id": "a", "created": 1e400}\n\n',
        b'data: {"choices": [{}], "id": "a"}\n\n',
        b'data: {"choices"' + b"[" * 5000 + b"\n\n",
    ],
)
def test_a_foreign_event_says_that_the_stream_cannot_be_continued(last: bytes) -> None:
    stream, _ = sent(event("a", 5))
    stream.passed_on(last)
    with pytest.raises(ValueError, match=r".+"):
        stream.part() if stream.end(None) is None else None


def test_a_number_too_large_for_an_id_is_an_error() -> None:
    stream, _ = sent(event("a", 5))
    stream.add([b"%d" % MAX_TOKEN_ID])
    assert stream.part().tokens == (5, MAX_TOKEN_ID)
    for large in (b"%d" % (MAX_TOKEN_ID + 1), b"9" * 30, b"9" * 5000):
        stream, _ = sent(event("a", 5))
        stream.add([large])
        with pytest.raises(ValueError, match=r".+"):
            stream.part()
    stream.add([b",,"])
    with pytest.raises(ValueError, match=r".+"):
        stream.part()
