"""Process entry: `python -m pdserve.downloader`. 0: the weights are there; 1: why not is said.

The reason also goes to the container's termination message, from where the operator shows it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
MAX_MESSAGE = 1024
"""Characters."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="pdserve-downloader", description="download weights")
    p.add_argument("--url", required=True, help="what to download")
    p.add_argument("--sha256", required=True, type=_digest, help="of what the URL names")
    p.add_argument(
        "--content", choices=("file", "manifest", "archive"), default="file",
        help="what the URL names: one file, a list as sha256sum prints it, a tar file",
    )  # fmt: skip
    p.add_argument("--to", required=True, type=Path, help="directory; the copy is files in it")
    p.add_argument("--max-bytes", required=True, type=int, help="most that is written")
    p.add_argument("--secret", default="", help="name of the Secret with credentials, if any")
    p.add_argument("--secret-dir", type=Path, default=Path(), help="where it is mounted")
    p.add_argument("--message-file", type=Path, default=TERMINATION_LOG, help="for the reason")
    return p


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError("must be 64 hexadecimal digits")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Download once; the exit status."""
    # As process 1 of a container nothing else would end it before SIGKILL.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    # Pods of one node may run as different users.
    os.umask(0)
    a = parser().parse_args(argv)
    from pdserve.downloader.errors import DownloadError

    try:
        made = _download(a)
    except (DownloadError, OSError) as error:
        _say(f"failed: {error}")
        _leave(a.message_file, f"weights are not downloaded: {error}")
        return 1
    _say("downloaded and checked" if made else "was here already")
    return 0


def _download(a: argparse.Namespace) -> bool:
    from pdserve.downloader.access import ServerAccess, read_access
    from pdserve.downloader.contents import WantedContent, fetch_content
    from pdserve.downloader.node_copy import copied
    from pdserve.downloader.transfer import Transfer

    access = read_access(a.secret, a.secret_dir) if a.secret else ServerAccess()
    wanted = WantedContent(a.url, a.sha256, a.content, a.max_bytes)
    transfer = Transfer(access, _say)

    def fetch(folder: Path) -> None:
        _say(f"downloading {a.url}")
        fetch_content(wanted, folder, transfer, _say)

    source = {"url": a.url, "sha256": a.sha256, "content": a.content}
    return copied(a.to, source, fetch, _say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _leave(path: Path, text: str) -> None:
    """Say it to the kubelet, where there is one."""
    try:
        # Not created: outside of a container there is no such file.
        with path.open("r+", encoding="utf-8") as file:
            file.write(text[:MAX_MESSAGE])
            file.truncate()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
