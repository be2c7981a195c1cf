"""The gateway's refusals, each an OpenAI error object (`ApiError`).

Overload says when to come back and asks SDKs not to retry at once (they retry 503 twice by
default, which would triple the load exactly then).
"""

from __future__ import annotations

from pdserve.http.errors import ApiError


def invalid(param: str | None, message: str) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, code="invalid_value", param=param)


def overloaded(code: str, message: str, retry_after: int) -> ApiError:
    """503: valid, but not servable in time."""
    return ApiError(
        503,
        message,
        kind="overloaded_error",
        code=code,
        headers=(
            (b"retry-after", str(retry_after).encode()),
            (b"x-should-retry", b"false"),
        ),
    )


def upstream(message: str) -> ApiError:
    """502: instances failed the request, and it could not be saved."""
    return ApiError(
        502,
        message,
        kind="server_error",
        code="upstream_error",
        headers=((b"x-should-retry", b"false"),),
    )
