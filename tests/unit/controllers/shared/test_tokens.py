"""Rule: whatever a user stores in a service's Secrets, reading gives credentials or `BadSecret`."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pdserve.controllers.shared.tokens import Tokens
from pdserve.desired.service_credentials import (
    MAX_VALUE,
    BadSecret,
    ServiceCredentials,
    encode,
    fresh,
    to_data,
)
from pdserve.kube.errors import KubeError

FRESH = fresh(lambda n: b"\0" * n)


class TwoSecrets:
    """The only requests that `Tokens.get` makes."""

    def __init__(self, credentials: Any, token: Any) -> None:
        self._data = {"shop-credentials": credentials, "shop-token": token}

    async def get(self, _resource: Any, name: str, namespace: str) -> dict[str, Any]:
        if self._data[name] == "absent":
            raise KubeError(404, "NotFound", f"secrets {name!r} not found")
        return {"metadata": {"name": name, "namespace": namespace}, "data": self._data[name]}


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def tokens(credentials: Any, token: Any = "absent") -> Tokens:
    client: Any = TwoSecrets(credentials, token)
    return Tokens(client, lambda n: b"\0" * n)


BAD = [
    "***", encoded(b"\xff\xfe"), encoded("tökén".encode()), encoded(b"two\r\nlines: x"),
    encoded(b"x" * (MAX_VALUE + 1)), encoded(b"a\nb\nc"), encoded(b"a\n"), 5, {},
]  # fmt: skip


@pytest.mark.parametrize("value", [None, "", *BAD], ids=str)
async def test_what_is_no_token_is_a_bad_secret(value: Any) -> None:
    with pytest.raises(BadSecret, match="Secret shop-token"):
        await tokens(to_data(FRESH), {"token": value}).get("prod/shop")


@pytest.mark.parametrize("key", ["control", "request", "kv", "step", "rotation"])
@pytest.mark.parametrize("value", BAD, ids=str)
async def test_what_are_no_credentials_is_a_bad_secret(key: str, value: Any) -> None:
    with pytest.raises(BadSecret, match="Secret shop-credentials"):
        await tokens({**to_data(FRESH), key: value}).get("prod/shop")


@pytest.mark.parametrize("data", [None, {}, {"control": encoded(b"x")}, encode({"step": "later"})])
async def test_missing_credentials_are_a_bad_secret(data: Any) -> None:
    with pytest.raises(BadSecret, match="Secret shop-credentials"):
        await tokens(data).get("prod/shop")


async def test_credentials_are_read() -> None:
    held = ServiceCredentials(("a", "b"), ("c",), ("d",), "spread", "r", "s3cret")
    assert await tokens(to_data(held), encode({"token": "s3cret"})).get("prod/shop") == held
    assert (await tokens(to_data(held)).get("prod/shop")).shared == ""
