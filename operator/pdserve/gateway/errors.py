"""Errors a client sees: always an OpenAI error object, so that its SDK raises the right class.

The HTTP status decides the SDK's exception; `code` is for programs, the message for people.
Overload says when to come back and asks SDKs not to retry at once (they retry 503 twice by
default, which would triple the load exactly then).
"""

from __future__ import annotations

from typing import Any

import orjson


class ApiError(Exception):
    """A refusal with its HTTP status, OpenAI `type`, `code` and `param`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers

    def value(self) -> dict[str, Any]:
        """The OpenAI error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """The error as a JSON body."""
        return orjson.dumps(self.value())

    def event(self) -> bytes:
        """The error as an SSE event, for a stream that already began."""
        return b"data: " + self.body() + b"\n\n"


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
