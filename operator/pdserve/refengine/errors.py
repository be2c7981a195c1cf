"""How a request is refused: it is wrong (`ApiError`), or there is no room (`RejectedError`).

Both carry an OpenAI error object. A rejection is decided before anything is queued and names its
reason in `x-pdserve-reject`, so that a gateway can try elsewhere at once.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer other than success: HTTP status plus OpenAI's error object.

    `param` is the body field at fault (dotted path), `code` a short machine-readable reason.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = (
            status,
            message,
            param,
            code,
            kind,
        )

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class RejectedError(ApiError):
    """No room, or not now: 503 (502 for a failed KV pull), with the reason for the gateway."""

    def __init__(self, reason: str, message: str, status: int = 503) -> None:
        super().__init__(status, message, code=reason, kind="rejected")
        self.reason = reason


def field_error(param: str, value: object, want: str) -> ApiError:
    """400 for one body field: path, value and what would be right."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(
        400, f"{param}: {shown} is not valid; {want}", param=param, code="invalid_value"
    )
