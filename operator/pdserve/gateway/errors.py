"""The gateway's refusals, each an OpenAI error object (`ApiError`).

Overload says when to come back and asks SDKs not to retry at once (they retry 503 twice by
default, which would triple the load exactly then).
"""

from __future__ import annotations

import orjson

from pdserve.http1.errors import ApiError
from pdserve.wire.calls import HEADER_LEFT_MS, HEADER_NEEDED_MS


def invalid(param: str | None, message: str) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, code="invalid_value", param=param)


def unserved(message: str) -> ApiError:
    """404: no scenario takes the request's model."""
    return ApiError(404, message, code="model_not_found", param="model")


def overloaded(code: str, message: str, retry: float, needed: float, left: float) -> ApiError:
    """503: valid, but not servable in time.

    Args:
        code: the reason, for programs.
        message: the reason, for people.
        retry: seconds after which the same request is likely to be taken.
        needed: seconds that it would have taken from now to token 1.
        left: seconds that its target left for that.
    """
    retry_ms, needed_ms, left_ms = (max(0, round(s * 1000)) for s in (retry, needed, left))
    details = {"needed_ms": needed_ms, "left_ms": left_ms, "retry_after_ms": retry_ms}
    return ApiError(
        503,
        f"{message}; needed {needed_ms} ms, left {left_ms} ms",
        kind="overloaded_error",
        code=code,
        headers=(
            (b"retry-after", b"%d" % max(1, -(-retry_ms // 1000))),
            (b"retry-after-ms", b"%d" % retry_ms),
            (HEADER_NEEDED_MS.encode(), b"%d" % needed_ms),
            (HEADER_LEFT_MS.encode(), b"%d" % left_ms),
            (b"x-should-retry", b"false"),
        ),
        details=details,
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


class RelayedError(ApiError):
    """An engine's own error body, passed on unchanged when it is an OpenAI error object."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, f"the engine answered {status}: {body[:500]!r}")
        self._body = body

    def body(self) -> bytes:
        """The engine's, or one that shows its beginning."""
        try:
            known = isinstance(orjson.loads(self._body)["error"], dict)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            known = False
        return self._body if known else super().body()
