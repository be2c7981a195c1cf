"""Credentials for Prometheus, and the CA that must have signed its certificate: mounted Secrets.

A bearer token, a user name with a password, a CA bundle. Files are read before each query, so a
rotated Secret is used without a restart. What cannot be used is an `AccessError` that names the
file and never its content.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SECRET: Final = 16 << 10
"""Bytes of a token, a user name or a password."""
MAX_CA: Final = 1 << 20
"""Bytes of a CA bundle."""


class AccessError(Exception):
    """A file cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the files hold at one moment."""

    authorization: str | None
    """Value of the header Authorization."""
    ca: str | None
    """The CA bundle, PEM."""


@dataclass(frozen=True, slots=True)
class Access:
    """Paths; None where something is not used. A token excludes user name and password."""

    token_file: str | None = None
    username_file: str | None = None
    password_file: str | None = None
    ca_file: str | None = None

    def read(self) -> Shown:
        """What the files hold now; each call reads them again.

        Raises:
            AccessError: a file is missing, too long or of another form; the message has its path,
                never its content.
        """
        return Shown(self._authorization(), self._ca())

    def _authorization(self) -> str | None:
        if self.token_file is not None:
            return f"Bearer {_secret(self.token_file, 'bearer token')}"
        if self.username_file is None or self.password_file is None:
            return None
        user = _secret(self.username_file, "user name")
        if ":" in user:
            raise AccessError(f"user name file {self.username_file}: has a ':'")
        both = f"{user}:{_secret(self.password_file, 'password')}"
        return f"Basic {base64.b64encode(both.encode()).decode()}"

    def _ca(self) -> str | None:
        if self.ca_file is None:
            return None
        text = _text(self.ca_file, "CA", MAX_CA)
        try:
            ssl.create_default_context(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise AccessError(f"CA file {self.ca_file}: has no usable certificate") from error
        return text


def _secret(path: str, what: str) -> str:
    text = _text(path, what, MAX_SECRET).strip()
    if not text or not text.isprintable() or not text.isascii():
        raise AccessError(f"{what} file {path}: must hold one line of printable ASCII")
    return text


def _text(path: str, what: str, most: int) -> str:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(most + 1)
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise AccessError(f"{what} file {path}: is not UTF-8") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise AccessError(f"{what} file {path}: {why}") from error
    if len(raw) > most:
        raise AccessError(f"{what} file {path}: more than {most} bytes")
    return text
