"""Rule: whatever a user stores in the token's Secret, reading it gives a token or `BadSecret`."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pdserve.controllers.tokens import MAX_TOKEN, BadSecret, Tokens


class OneSecret:
    """The only request that `Tokens.get` makes."""

    def __init__(self, data: Any) -> None:
        self._data = data

    async def get(self, _resource: Any, name: str, namespace: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": namespace}, "data": self._data}


def encoded(raw: bytes) -> dict[str, str]:
    return {"token": base64.b64encode(raw).decode()}


def tokens(data: Any) -> Tokens:
    return Tokens(OneSecret(data), lambda n: b"\0" * n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"token": "***"},
        {"token": None},
        encoded(b""),
        encoded(b"\xff\xfe"),
        encoded("tökén".encode()),
        encoded(b"two\r\nlines: x"),
        encoded(b"x" * (MAX_TOKEN + 1)),
    ],
)
async def test_what_is_no_token_is_a_bad_secret(data: Any) -> None:
    with pytest.raises(BadSecret, match="Secret shop-token"):
        await tokens(data).get("prod/shop")


async def test_a_token_is_read() -> None:
    assert await tokens(encoded(b"s3cret")).get("prod/shop") == "s3cret"
