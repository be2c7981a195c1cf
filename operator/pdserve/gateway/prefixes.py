"""Keeps the prefixes of different clients apart, in the engines' caches and in our index.

What an engine has in its prefix cache shows in the reply (`cached_tokens`) and in its time, so a
client could find out what another one has sent. Engines compute blocks of different `cache_salt`
apart (vLLM's field); where clients have API keys, each key has a salt of its own. Neighbours: `app`
calls both, `forwarding.prefix` has the index.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from pdserve.engines.credentials import Credential
from pdserve.forwarding.prefix.blocks import prompt_blocks
from pdserve.gateway.auth import API_KEY, AUTHORIZATION, tenant_of
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.prefixes import PromptBlocks

FIELD = "cache_salt"


def salt_with_key(body: JsonObject, headers: Mapping[bytes, bytes]) -> None:
    """Set the salt of a checked body to one of the client's API key and of its own salt, if any.

    A salt of the client that is no text stays, for the engine to refuse.
    """
    own = body.get(FIELD)
    tenant = tenant_of(headers.get(AUTHORIZATION), headers.get(API_KEY))
    if tenant and (own is None or isinstance(own, str)):
        salt = hashlib.blake2b(
            (own or "").encode(errors="surrogatepass"), key=tenant, digest_size=16
        )
        body[FIELD] = salt.hexdigest()


class PromptHasher:
    """Makes blocks of prompts, with a secret of the service's gateways.

    They have a credential in common, so that a prompt has the same blocks in all of them. Without
    one the secret is this process's own.
    """

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._own = secrets.token_hex(32)
        self._of = ""
        """What the secret was made of."""
        self._secret = b""

    def blocks(self, body: JsonMap) -> PromptBlocks:
        """The blocks of a checked body's prompt; those of different salts are different."""
        source = self._credential.first or self._own
        if source != self._of:
            self._of = source
            self._secret = hashlib.sha256(b"pdserve-prompt-blocks\0" + source.encode()).digest()
        salt = body.get(FIELD)
        if not isinstance(salt, str) or not salt:
            return prompt_blocks(body, self._secret)
        salted = hashlib.blake2b(salt.encode(errors="surrogatepass"), key=self._secret)
        return prompt_blocks(body, salted.digest())
