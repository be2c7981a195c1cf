"""Gateways as processes: memory under attack, and the loss of one of two under load."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.gateway_process import GatewayProcess, write_routes
from tests.support.gateway_rig import SLO, Rig, eventually
from tests.support.hostile_bodies import read_reply

MIB = 1 << 20


@pytest_asyncio.fixture
async def started(rig: Rig, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Gateways that a test starts with `start`; killed at its end."""
    made: list[GatewayProcess] = []
    yield made
    for process in made:
        await process.kill()


async def pair(rig: Rig, path: Path, slots: int = 8) -> None:
    """One prefill and one decode, and their route table at `path`."""
    engines = [await rig.engine("prefill", "p0", slots=slots)]
    engines.append(await rig.engine("decode", "d0", slots=64))
    write_routes(path, SLO, *engines)


async def one(port: int, body: bytes, headers: str = "") -> tuple[int, bytes]:
    """One completion."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(60):
            status, reply, _ = await read_reply(reader)
        return status, reply
    finally:
        writer.close()


HONEST = b'{"model":"tiny","prompt":"hello","max_tokens":3}'


@pytest.mark.invariant(10)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "2-byte chunks"])
async def test_150_half_bodies_take_no_more_than_256_mib(
    rig: Rig, tmp_path: Path, started: list[GatewayProcess], chunked: bool
) -> None:
    await pair(rig, tmp_path / "routes.json")
    gateway = await GatewayProcess(tmp_path / "routes.json").start()
    started.append(gateway)
    half = (b"2\r\nxx\r\n" * (64 << 10)) if chunked else b"x" * (2 * MIB)
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {4 * MIB - 1}"
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode()
    writers = []
    peak = 0
    for _ in range(150):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writers.append(writer)
        writer.write(head + half)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        peak = max(peak, gateway.rss)
    assert (await one(gateway.port, HONEST))[0] == 200, "small ones pass"
    peak = max(peak, gateway.rss)
    assert peak <= 256 * MIB, f"{peak / MIB:.0f} MiB"
    for writer in writers:
        writer.close()


async def test_one_of_two_gateways_killed_costs_only_its_own_open_requests(
    rig: Rig, tmp_path: Path, started: list[GatewayProcess]
) -> None:
    await pair(rig, tmp_path / "routes.json")
    prefill, decode = rig.engines["p0"], rig.engines["d0"]
    decode.token_seconds = 0.01
    started += [await GatewayProcess(tmp_path / "routes.json").start() for _ in range(2)]
    body = b'{"model":"tiny","prompt":"hello","stream":true,"max_tokens":40}'
    killed: list[asyncio.Task[tuple[int, bytes]]] = []
    kept: list[asyncio.Task[tuple[int, bytes]]] = []
    for _ in range(12):
        killed.append(asyncio.create_task(one(started[0].port, body)))
        kept.append(asyncio.create_task(one(started[1].port, body)))
    await eventually(lambda: decode.running >= 16, "both stream")
    await started[0].kill()
    lost = await asyncio.gather(*killed, return_exceptions=True)
    assert any(isinstance(each, BaseException) for each in lost)
    kept += [asyncio.create_task(one(started[1].port, body)) for _ in range(12)]
    for status, reply in await asyncio.gather(*kept):
        assert status == 200
        assert reply.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in reply
    await eventually(lambda: decode.running == 0 and prefill.running == 0, "nothing is left behind")


async def test_the_access_log_tells_one_line_per_request(
    rig: Rig, tmp_path: Path, started: list[GatewayProcess]
) -> None:
    await pair(rig, tmp_path / "routes.json")
    gateway = await GatewayProcess(tmp_path / "routes.json").start()
    started.append(gateway)
    rig.engines["d0"].script = ["full"]
    assert (await one(gateway.port, HONEST, "x-request-id: mine\r\n"))[0] == 200
    assert (await one(gateway.port, b"{}", "x-request-id: odd\r\n"))[0] == 400
    await eventually(lambda: len(gateway.lines) == 2, "two lines")
    first, second = gateway.lines
    assert (first["request"], first["status"], first["outcome"]) == ("mine", 200, "completed")
    assert [(leg["leg"], leg["instance"], leg["result"]) for leg in first["legs"]] == [
        ("prefill", "p0", "accepted"),
        ("decode", "d0", "refused: decode_full"),
        ("decode", "d0", "accepted"),
    ]
    assert first["scenario"] == "chat"
    assert first["ttftMs"] <= first["ms"]
    assert (second["request"], second["status"], second["code"]) == ("odd", 400, "invalid_value")


async def test_the_access_log_can_be_switched_off(
    rig: Rig, tmp_path: Path, started: list[GatewayProcess]
) -> None:
    await pair(rig, tmp_path / "routes.json")
    gateway = await GatewayProcess(tmp_path / "routes.json", "--access-log", "off").start()
    started.append(gateway)
    assert (await one(gateway.port, HONEST))[0] == 200
    await gateway.kill()
    assert gateway.lines == []
