"""What the operator has told this instance: the newest peer table, and the grant beside it.

Kept in a file, so that a proxy that starts anew in the same pod serves at once: the operator gives
a table once for each run of the engine's container, which has not restarted. The file lies in a
volume of the pod and has what the operator sent, readable by the proxy's user alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from pdserve.engineproxy.peer_checks import PeerChecks
from pdserve.engines.trust import Sender, Trust
from pdserve.http1.errors import ApiError
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.credentials import MAX_PUSH, Grant
from pdserve.wire.peers import PeerTable

log = logging.getLogger(__name__)


class ProxyState:
    """Takes peer tables over, and keeps the newest."""

    def __init__(self, file: Path | None, trust: Trust, peers: PeerChecks) -> None:
        """`file`: None where nothing is kept."""
        self._file, self._trust, self._peers = file, trust, peers

    def take(self, body: bytes, sender: Sender) -> int:
        """Take over a table and its grant; returns the table's version.

        Raises:
            WireError: the body is none.
            ApiError: the table is too old, or is not for this instance.
        """
        value = parse_json(body, max_bytes=MAX_PUSH)
        table = PeerTable.from_json(value)
        given = value.get("credentials")
        grant = None if given is None else Grant.from_json(given)
        self._trust.take(grant, sender)
        self._peers.accept(table)
        self._keep(body)
        return table.version

    def restore(self) -> None:
        """Take over what was kept, if anything was."""
        if self._file is None:
            return
        try:
            with self._file.open("rb") as source:
                body = source.read(MAX_PUSH + 1)
            version = self.take(body, "control")
        except FileNotFoundError:
            return
        except (OSError, WireError, ApiError) as error:
            log.warning("%s cannot be used: %s", self._file, error)
            return
        log.info("peer table %d of the process before this one", version)

    def _keep(self, body: bytes) -> None:
        if self._file is None:
            return
        made = self._file.with_suffix(".new")
        try:
            with contextlib.suppress(FileNotFoundError):
                made.unlink()
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as target:
                target.write(body)
            made.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._file, error)
