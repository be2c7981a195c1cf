"""Errors a client sees: always an OpenAI error object, so that its SDK raises the right class."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from pdserve.terms.json import JsonObject

Headers = tuple[tuple[bytes, bytes], ...]


class ApiError(Exception):
    """An answer other than success.

    The HTTP status decides which exception an SDK raises. `kind` is OpenAI's `type`, `code` a
    short reason for programs, `param` the body field at fault (dotted path), the message for
    people; `headers` go with the reply, `details` (more fields for programs) into the object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Headers = (),
        details: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers
        self.details = details or {}

    def value(self) -> JsonObject:
        """The OpenAI error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }

    def body(self) -> bytes:
        """The error as a JSON body, in UTF-8."""
        return orjson.dumps(self.value())

    def event(self) -> bytes:
        """The error as an SSE event, for a stream that already began."""
        return b"data: " + self.body() + b"\n\n"
