"""What a server asks for before it hands weights out: read from the files of a mounted Secret.

    token                 Authorization: Bearer TOKEN
    username, password    Authorization: Basic ...
    authorization         the header's whole value
    query                 put behind `?` of each URL: a presigned URL, or a token of a storage
    ca.crt                certificates that are trusted beside none other

At most one kind of Authorization.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pdserve.downloader.errors import DownloadError

MAX_VALUE = 64 << 10
KEYS = ("token", "username", "password", "authorization", "query", "ca.crt")


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """Credentials for one origin."""

    authorization: str = field(default="", repr=False)
    query: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    """None: the certificates that the system trusts."""


def read_access(name: str, folder: Path) -> ServerAccess:
    """The credentials in a mounted Secret.

    Args:
        name: of the Secret, for messages.
        folder: where it is mounted; empty where there is no such Secret.

    Raises:
        DownloadError: there is none, or it holds nothing that is known, or two contradict.
    """
    found = {key: _value(name, folder / key) for key in KEYS if (folder / key).is_file()}
    if not found:
        raise DownloadError(f"Secret {name} is missing or has none of {', '.join(KEYS)}")
    kinds = [key for key in ("token", "authorization", "username") if key in found]
    if len(kinds) > 1:
        raise DownloadError(f"Secret {name}: only one of {' and '.join(kinds)} can be used")
    if ("username" in found) != ("password" in found):
        raise DownloadError(f"Secret {name}: username and password go together")
    authorization = found.get("authorization", "")
    if "token" in found:
        authorization = f"Bearer {found['token']}"
    if "username" in found:
        pair = f"{found['username']}:{found['password']}".encode()
        authorization = f"Basic {base64.b64encode(pair).decode()}"
    query = found.get("query", "").removeprefix("?")
    return ServerAccess(authorization, query, _tls(name, found.get("ca.crt")))


def _value(name: str, path: Path) -> str:
    try:
        text = path.read_bytes()[: MAX_VALUE + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DownloadError(f"Secret {name}: key {path.name} is not ASCII text") from error
    lines = path.name != "ca.crt" and not text.isprintable()
    if not text or len(text) > MAX_VALUE or lines or (path.name == "query" and " " in text):
        raise DownloadError(f"Secret {name}: key {path.name} is empty, too long or not one line")
    return text


def _tls(name: str, certificates: str | None) -> ssl.SSLContext | None:
    if certificates is None:
        return None
    try:
        return ssl.create_default_context(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        raise DownloadError(f"Secret {name}: ca.crt has no certificate ({error})") from error
