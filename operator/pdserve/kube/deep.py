"""Documents nested too deeply for the parser: what is too deep is cut out, the rest is read.

The API server stores 10,000 levels in a field that keeps unknown content; the parser takes 1,000.
So one object could hide every list that holds it: the whole kind, from every client. Neighbour:
`transport`, which comes here only when the parser has refused.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 256
"""Lists and objects inside one another that are kept; API objects have about 30."""
CUT: Final = b'"nested too deeply"'
"""What stands in place of a value that was cut out."""
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_STRINGS = re.compile(_STRING, re.DOTALL)
_TOKEN = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def without_depths(document: bytes, most: int = MAX_DEPTH) -> bytes:
    """The document with each list or object beyond `most` levels replaced by `CUT`.

    Takes time in proportion to its length, so not for the event loop: about 1 s for 10 MB, half of
    that where nothing is to be cut out. What is not JSON stays so.
    """
    if _is_shallow(document, most):
        return document
    kept: list[bytes] = []
    depth, end = 0, 0
    for token in _TOKEN.finditer(document):
        mark = document[token.start()]
        if mark in b"[{":
            depth += 1
            if depth == most + 1:
                kept.append(document[end : token.start()])
        elif mark in b"]}":
            depth -= 1
            if depth == most:
                kept.append(CUT)
                end = token.end()
    kept.append(document[end:] if depth <= most else b"")
    return b"".join(kept)


def _is_shallow(document: bytes, most: int) -> bool:
    """Whether nothing lies deeper; may be False for what is not JSON."""
    brackets = _STRINGS.sub(b"", document).translate(None, _NO_BRACKETS)
    for _ in range(most):
        if not brackets:
            return True
        # The innermost pairs, and those alone: what held them is a pair only afterwards.
        brackets = brackets.replace(b"{}", b".").replace(b"[]", b".").translate(None, b".")
    return not brackets
