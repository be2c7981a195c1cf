"""One wildcard for IPv4-only, IPv6-only and dual-stack clusters (K7.4)."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pdserve.controllers.options import parse_options
from pdserve.exposition import Registry
from pdserve.http1.listen import EVERYWHERE, listening
from pdserve.http1.pages import health_pages, page_server


def has(host: str, family: socket.AddressFamily) -> bool:
    """Whether this machine has an address of that family."""
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


async def ask(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line


@pytest.mark.skipif(not has("::1", socket.AF_INET6), reason="this machine has no IPv6")
async def test_everywhere_answers_both_families() -> None:
    server = page_server(health_pages(Registry()))
    port = await server.start(EVERYWHERE, 0)
    try:
        for host in ("127.0.0.1", "::1"):
            assert b"200" in await ask(host, port)
    finally:
        await server.stop(0.0)


async def test_without_ipv6_it_is_every_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIpv6(socket.socket):
        def __init__(self, family: int = -1, *args: int, **kwargs: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", NoIpv6)
    made = listening(EVERYWHERE, 0)["sock"]
    assert made.family == socket.AF_INET
    made.close()


def test_other_addresses_are_taken_as_they_are() -> None:
    assert listening("127.0.0.1", 8000) == {"host": "127.0.0.1", "port": 8000}


def test_a_taken_port_is_an_error() -> None:
    first = listening(EVERYWHERE, 0)["sock"]
    first.listen()
    with pytest.raises(OSError, match="in use"):
        listening(EVERYWHERE, first.getsockname()[1])
    first.close()


def test_it_is_the_default_of_operator_and_images() -> None:
    from pathlib import Path

    assert parse_options([], {}).bind == EVERYWHERE
    dockerfile = (Path(__file__).resolve().parents[3] / "Dockerfile").read_text()
    assert f"PDSERVE_BIND={EVERYWHERE} " in dockerfile
