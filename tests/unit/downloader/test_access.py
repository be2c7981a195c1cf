"""Credentials of a mounted Secret, and the certificates that it names."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path

import pytest
from tests.support import certificates
from tests.support.weights_server import Reply, in_turn, serving

from pdserve.downloader.access import read_access
from pdserve.downloader.errors import DownloadError
from pdserve.downloader.part_file import ByteBudget
from pdserve.downloader.transfer import Patience, Transfer


def mounted(folder: Path, **values: str | bytes) -> Path:
    for key, value in values.items():
        data = value if isinstance(value, bytes) else value.encode()
        (folder / key.replace("ca_crt", "ca.crt")).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("values", "authorization", "query"),
    [
        ({"token": "abc\n"}, "Bearer abc", ""),
        ({"authorization": "Token abc"}, "Token abc", ""),
        ({"username": "u", "password": "p:w"}, "Basic " + base64.b64encode(b"u:p:w").decode(), ""),
        ({"query": "?sig=a%2B&x=1"}, "", "sig=a%2B&x=1"),
        ({"query": "sig=a", "token": "t", "other": "y"}, "Bearer t", "sig=a"),
    ],
)
def test_what_each_key_means(
    tmp_path: Path, values: dict[str, str], authorization: str, query: str
) -> None:
    found = read_access("hub", mounted(tmp_path, **values))
    assert (found.authorization, found.query) == (authorization, query)
    assert authorization not in repr(found) or not authorization


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "Secret hub is missing or has none of token"),
        ({"other": "x"}, "missing or has none of"),
        ({"token": "a", "authorization": "b"}, "only one of token and authorization"),
        ({"username": "u"}, "username and password go together"),
        ({"password": "p"}, "username and password go together"),
        ({"token": "a\r\nX-Other: 1"}, "token is empty, too long or not one line"),
        ({"token": " \n"}, "token is empty"),
        ({"token": b"\xff"}, "token is not ASCII"),
        ({"token": "a" * 70_000}, "too long"),
        ({"query": "a b"}, "query is empty, too long or not one line"),
        ({"ca_crt": "no certificate"}, "ca.crt has no certificate"),
    ],
)
def test_a_secret_that_cannot_be_used_is_reported_without_its_content(
    tmp_path: Path, values: dict[str, str], says: str
) -> None:
    with pytest.raises(DownloadError, match=says) as refused:
        read_access("hub", mounted(tmp_path, **values))
    assert "X-Other" not in str(refused.value)


@pytest.mark.parametrize(("trusted", "says"), [("ONE", ""), ("TWO", "certificate is not trusted")])
def test_a_servers_certificate_is_checked(tmp_path: Path, trusted: str, says: str) -> None:
    (tmp_path / "cert").write_text(certificates.ONE)
    (tmp_path / "key").write_text(certificates.ONE_KEY)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    access = read_access("hub", mounted(tmp_path, ca_crt=getattr(certificates, trusted)))
    waits: list[float] = []
    transfer = Transfer(access, lambda _: None, Patience(waits.append))
    target, digest = tmp_path / "m.gguf", hashlib.sha256(b"GGUF").hexdigest()
    with serving(in_turn(Reply(b"GGUF")), server_tls) as server:
        if says:
            with pytest.raises(DownloadError, match=says):
                transfer.fetch(f"{server.url}/m.gguf", digest, target, ByteBudget(99))
            assert not waits
            return
        transfer.fetch(f"{server.url}/m.gguf", digest, target, ByteBudget(99))
    assert target.read_bytes() == b"GGUF"
