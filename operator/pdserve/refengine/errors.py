"""How the engine refuses a field of a request.

Refusals for lack of room are `engines.instance_answers.RejectedError`.
"""

from __future__ import annotations

import reprlib

from pdserve.http1.errors import ApiError

_SHORT = reprlib.Repr()
"""Bounded in depth and length: a body's value may be nested deeply, or megabytes long."""
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def field_error(param: str, value: object, want: str) -> ApiError:
    """400 for one body field: path, value and what would be right."""
    shown = _SHORT.repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(
        400, f"{param}: {shown} is not valid; {want}", param=param, code="invalid_value"
    )
