"""vLLM's KV events: what vLLM's own encoder made of them, and what is refused.

The bytes are msgspec's of vLLM's classes: three stored blocks (the first two begin a prompt), two
removals, of which one is of another medium, and a clearing.
"""

from __future__ import annotations

import msgpack
import pytest

from pdserve.engineproxy.kv_events import (
    MAX_BATCH,
    MAX_BLOCKS,
    MAX_EVENTS,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    KvEventError,
    parse_batch,
)

A, B, C = (bytes([n]) * 32 for n in (0xA1, 0xA2, 0xA3))
HA, HB, HC = ("c420" + name.hex() for name in (A, B, C))
STORED = "a474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573"
REMOVED = "a474797065ac426c6f636b52656d6f766564ac626c6f636b5f686173686573"
PARENT = "b1706172656e745f626c6f636b5f68617368"
MEDIUM = "a66d656469756da3475055a96c6f72615f6e616d65c0"
SESSION = "aa73657373696f6e5f6964a56c65672d31"
EVENTS = (
    f"958c{STORED}92{HA}{HB}{PARENT}c0a9746f6b656e5f6964739405060708aa626c6f636b5f73697a6502"
    f"a76c6f72615f6964c0{MEDIUM}aa65787472615f6b6579739291a473616c74c0a967726f75705f69647800"
    f"b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e{SESSION}"
    f"8a{STORED}91{HC}{PARENT}{HB}a9746f6b656e5f6964739209cd012caa626c6f636b5f73697a6502"
    f"a76c6f72615f6964c0{MEDIUM}a967726f75705f69647800{SESSION}"
    f"84{REMOVED}91{HA}a66d656469756da3475055a967726f75705f69647800"
    f"83{REMOVED}9107a66d656469756da3435055"
    "81a474797065b0416c6c426c6f636b73436c6561726564"
)
V032 = f"93cb409b920000000000{EVENTS}00"
MAPS = f"83a27473cb409b920000000000a66576656e7473{EVENTS}b2646174615f706172616c6c656c5f72616e6b00"
LISTS = (
    f"93cb409b920000000000959fab426c6f636b53746f72656492{HA}{HB}c0940506070802c0a3475055c0"
    f"9291a473616c74c000ae66756c6c5f617474656e74696f6ec0c0c0a56c65672d319fab426c6f636b53746f726564"
    f"91{HC}{HB}9209cd012c02c0a3475055c0c000c0c0c0c0a56c65672d3194ac426c6f636b52656d6f76656491{HA}"
    "a34750550094ac426c6f636b52656d6f7665649107a3435055c091b0416c6c426c6f636b73436c656172656400"
)


@pytest.mark.parametrize(("raw", "session"), [(V032, "leg-1"), (MAPS, "leg-1"), (LISTS, "")])
def test_what_vllm_writes_is_read(raw: str, session: str) -> None:
    assert parse_batch(bytes.fromhex(raw)) == [
        BlocksStored((A, B), None, 2, session),
        BlocksStored((C,), B, 2, session),
        BlocksRemoved((A,)),
        BlocksCleared(),
    ]


def stored(**fields: object) -> dict[str, object]:
    value = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None,
             "token_ids": [1], "block_size": 16, "medium": "GPU", "session_id": "s"}  # fmt: skip
    return value | fields


@pytest.mark.parametrize(
    "event",
    [
        5, "BlockStored", [], {}, {"type": 5}, [5, [1]], None,
        stored(block_hashes=None), stored(block_hashes=5), stored(block_hashes=["x"]),
        stored(block_hashes=[None]), stored(block_hashes=[True]), stored(block_hashes=[b""]),
        stored(block_hashes=[b"x" * 65]), stored(block_hashes=[1.5]), stored(block_hashes=[[1]]),
        stored(block_hashes=[1] * (MAX_BLOCKS + 1)), stored(block_size=0), stored(block_size=-1),
        stored(block_size=None), stored(block_size=True), stored(block_size=1 << 20),
        stored(block_size="16"), stored(parent_block_hash="x"), stored(parent_block_hash=[]),
        {"type": "BlockRemoved"}, {"type": "BlockRemoved", "block_hashes": {}}, ["BlockRemoved"],
        ["BlockStored", [1], None, [1]],
    ],
)  # fmt: skip
def test_an_event_that_makes_no_sense_is_refused(event: object) -> None:
    with pytest.raises(KvEventError):
        parse_batch(msgpack.packb([0.0, [event]]))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xc1", b"\x93", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 4000,
        b"\x81\x91\x01\x02", b"\xa2\xff\xff", msgpack.packb(None), msgpack.packb(5),
        msgpack.packb([]), msgpack.packb([0.0]), msgpack.packb([0.0, 5]), msgpack.packb({}),
        msgpack.packb({"events": 5}), msgpack.packb([0.0, [None] * (MAX_EVENTS + 1)]),
        msgpack.packb([0.0, []]) + b"x", b"x" * (MAX_BATCH + 1),
    ],
)  # fmt: skip
def test_bytes_that_are_no_batch_are_refused(raw: bytes) -> None:
    with pytest.raises(KvEventError):
        parse_batch(raw)


@pytest.mark.parametrize(
    "event",
    [
        stored(medium="CPU"), stored(group_idx=1), {"type": "TierBlocksCleared", "tier": "x"},
        ["BlockTransferred", 1], {"type": "BlockRemoved", "block_hashes": [1], "medium": "STORAGE"},
    ],
)  # fmt: skip
def test_events_of_other_memory_and_of_newer_kinds_say_nothing(event: object) -> None:
    assert parse_batch(msgpack.packb([0.0, [event]])) == []


def test_a_session_that_is_no_text_is_none() -> None:
    (event,) = parse_batch(msgpack.packb([0.0, [stored(session_id=5)]]))
    assert event == BlocksStored((1,), None, 16, "")
