"""Keys and tokens of one local cluster, made without openssl or a certificate library.

kube-apiserver signs its own serving certificate (`--cert-dir`). Users and components authenticate
by random bearer tokens. Service account tokens are signed with an elliptic-curve key, written here
in its SEC 1 form (RFC 5915); Go derives the public half from it.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from pathlib import Path

import yaml

# Order of the base point of NIST P-256 (SEC 2, 2.4.2): a private key is 1 <= d < n.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# SEQUENCE { INTEGER 1, OCTET STRING (32 bytes), [0] OID prime256v1 }
_EC_HEAD = bytes.fromhex("30310201010420")
_EC_TAIL = bytes.fromhex("a00a06082a8648ce3d030107")


def ec_private_key_pem() -> str:
    """A fresh P-256 private key as PEM."""
    secret = (secrets.randbelow(_P256_ORDER - 1) + 1).to_bytes(32, "big")
    body = base64.encodebytes(_EC_HEAD + secret + _EC_TAIL).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{body}-----END EC PRIVATE KEY-----\n"


@dataclass(frozen=True, slots=True)
class User:
    """One line of kube-apiserver's token file."""

    name: str
    token: str
    groups: tuple[str, ...] = ()


def new_user(name: str, *groups: str) -> User:
    """A user with a fresh random token."""
    return User(name, secrets.token_urlsafe(24), groups)


def token_file(users: list[User]) -> str:
    """The CSV that `--token-auth-file` reads."""
    lines = []
    for user in users:
        groups = f',"{",".join(user.groups)}"' if user.groups else ""
        lines.append(f"{user.token},{user.name},{user.name}{groups}\n")
    return "".join(lines)


def kubeconfig(server: str, ca_pem: bytes, user: User, cluster: str) -> str:
    """A kubeconfig for one user, everything inline so that the file can be copied."""
    ca = base64.b64encode(ca_pem).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": cluster, "cluster": {"server": server, "certificate-authority-data": ca}}
        ],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user.name}}],
        "current-context": cluster,
    }
    return yaml.safe_dump(document, sort_keys=False)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
