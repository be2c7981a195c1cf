"""A prompt as chained digests of its blocks, so that equal beginnings have equal digests.

The gateway has no tokenizer: text is cut into blocks of bytes, token ids into blocks of ids. Each
digest covers all of the prompt up to the end of its block, keyed with a secret of the gateways and
the client's API key: no client can find, or collide with, what another one sent. A block that is
not full has no digest. Neighbour: `index` keeps them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import orjson

from pdserve.terms.json import JsonMap
from pdserve.wire.prefixes import MAX_PROMPT_DIGESTS, NO_BLOCKS, PromptBlocks

BLOCK_BYTES = 512
"""About 128 tokens of English."""
BLOCK_IDS = 64
"""Token ids of a block; each is hashed as four bytes."""
MAX_BLOCKS = MAX_PROMPT_DIGESTS
"""Of one prompt: 1 MiB of text. What follows counts as not cached."""
_ID_BYTES = 4
_DIGEST_BYTES = 8


def prompt_blocks(body: JsonMap, key: bytes) -> PromptBlocks:
    """Blocks of a checked body's prompt; none where it is shorter than one block.

    `key`: at most 64 secret bytes; prompts under different keys have no digest in common. Tools
    stand before the messages, as in the templates of most models.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, orjson.Fragment):
        written = orjson.dumps(prompt)
        return _of_ids(_first_ids(written), key, len(written))
    if isinstance(prompt, list):
        return _of_ids(prompt, key) if set(map(type, prompt)) == {int} else NO_BLOCKS
    return _of_text(_texts(prompt, body), key)


def _of_text(texts: Iterable[str], key: bytes) -> PromptBlocks:
    most = MAX_BLOCKS * BLOCK_BYTES
    parts: list[bytes] = []
    total = 0
    for text in texts:
        if total < most:
            parts.append(text[:most].encode(errors="surrogatepass"))
            total += len(parts[-1]) + max(0, len(text) - most)
        else:
            total += len(text)
    return _chain(b"".join(parts), BLOCK_BYTES, total, key)


def _texts(prompt: object, body: JsonMap) -> Iterator[str]:
    """All that a template makes a prompt of, in its order."""
    messages = body.get("messages")
    if isinstance(prompt, str):
        yield prompt
    if not isinstance(messages, list):
        return
    if body.get("tools"):
        yield orjson.dumps(body["tools"]).decode()
    for message in messages:
        if not isinstance(message, dict):
            continue
        yield f"\0{message.get('role')}\0"
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif content is not None:
            yield orjson.dumps(content).decode()


def _first_ids(written: bytes) -> list[int]:
    """The first ids of a list that is still JSON; as many as 64 KiB of it hold."""
    end = written.rfind(b",", 0, 1 << 16)
    return list(orjson.loads(written[:end] + b"]")) if end > 0 else []


def _of_ids(ids: list[int], key: bytes, written: int = 0) -> PromptBlocks:
    """`written`: bytes of JSON of the whole list, where `ids` are only its first."""
    first = ids[: MAX_BLOCKS * BLOCK_IDS]
    try:
        data = array("i", first).tobytes()
    except OverflowError:
        return NO_BLOCKS  # no token of any model
    total = len(ids) * max(1.0, written / (1 << 16))
    return _chain(b"ids" + data, BLOCK_IDS * _ID_BYTES, total * _ID_BYTES, key, 3)


def _chain(data: bytes, size: int, total: float, key: bytes, start: int = 0) -> PromptBlocks:
    """Digests after each `size` bytes of `data`, the first `start` of which belong to all."""
    state = blake2b(data[:start], key=key, digest_size=_DIGEST_BYTES)
    digests = array("Q")
    view = memoryview(data)
    for at in range(start, min(len(data), start + MAX_BLOCKS * size) - size + 1, size):
        state.update(view[at : at + size])
        digests.frombytes(state.copy().digest())
    return PromptBlocks(digests, size / total) if digests else NO_BLOCKS
