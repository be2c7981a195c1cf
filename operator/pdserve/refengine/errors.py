"""How the engine refuses: a field is wrong (`field_error`), or there is no room (`RejectedError`).

Both carry an OpenAI error object. A rejection is decided before anything is queued and names its
reason in `x-pdserve-reject`, so that a gateway can try elsewhere at once.
"""

from __future__ import annotations

import reprlib

from pdserve.http1.errors import ApiError
from pdserve.wire import calls

_REJECT = calls.HEADER_REJECT.encode()

_SHORT = reprlib.Repr()
"""Bounded in depth and length: a body's value may be nested deeply, or megabytes long."""
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class RejectedError(ApiError):
    """No room, or not now: 503 (502 for a failed KV pull), with the reason for the gateway."""

    def __init__(self, reason: str, message: str, status: int = 503) -> None:
        headers = ((_REJECT, reason.encode()), (b"retry-after", b"0"))
        super().__init__(status, message, code=reason, kind="rejected", headers=headers)


def field_error(param: str, value: object, want: str) -> ApiError:
    """400 for one body field: path, value and what would be right."""
    shown = _SHORT.repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(
        400, f"{param}: {shown} is not valid; {want}", param=param, code="invalid_value"
    )
