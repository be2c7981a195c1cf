"""Probe actions against a real server on loopback and real commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from localcluster.agent.probes import ProbeTarget

IP = "127.0.0.1"


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        code = int(request.query.get("code", "200"))
        if request.query.get("slow"):
            await asyncio.sleep(60)
        location = {"Location": "/nowhere"} if code in (301, 302) else {}
        expected = request.headers.get("X-Probe") == "yes"
        return web.Response(status=code if expected else 500, headers=location)

    app = web.Application()
    app.router.add_get("/health", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, IP, 0)
    await site.start()
    yield int(runner.addresses[0][1])
    await runner.cleanup()


async def ask(port: int, action: dict[str, Any], seconds: float = 5.0) -> tuple[bool, str]:
    async def run_inside(argv: list[str]) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode().strip()

    container = {"ports": [{"name": "http", "containerPort": port}]}
    async with aiohttp.ClientSession() as session:
        return await ProbeTarget(container, IP, session, run_inside).ask(action, seconds)


def http(path: str, port: Any = "http") -> dict[str, Any]:
    headers = [{"name": "X-Probe", "value": "yes"}]
    return {"httpGet": {"path": path, "port": port, "httpHeaders": headers}}


@pytest.mark.parametrize(
    ("path", "ok"),
    [
        ("/health", True),
        ("health", True),
        ("/health?code=204", True),
        ("/health?code=302", True),
        ("/health?code=400", False),
        ("/health?code=503", False),
        ("/nowhere", False),
    ],
)
async def test_http_status_decides_and_redirects_are_not_followed(
    port: int, path: str, ok: bool
) -> None:
    answer, said = await ask(port, http(path))
    assert answer is ok, said
    assert "statuscode" in said


async def test_a_slow_answer_is_a_failure(port: int) -> None:
    assert await ask(port, http("/health?slow=1"), 0.1) == (False, "timed out after 0.1 s")


async def test_ports_by_number_by_name_and_unknown(port: int) -> None:
    assert (await ask(port, {"tcpSocket": {"port": port}}))[0]
    assert (await ask(port, {"tcpSocket": {"port": "http"}}))[0]
    assert (await ask(port, {"tcpSocket": {"port": str(port)}}))[0]
    ok, said = await ask(port, {"tcpSocket": {"port": "grpc"}})
    assert not ok
    assert said == "port 'grpc': the container names no such port"


async def test_a_closed_port_is_a_failure() -> None:
    ok, said = await ask(1, {"tcpSocket": {"port": 1}})
    assert not ok
    assert "refused" in said.lower() or "Connect call failed" in said


async def test_commands(port: int) -> None:
    assert await ask(port, {"exec": {"command": ["sh", "-c", "echo fine"]}}) == (True, "fine")
    assert (await ask(port, {"exec": {"command": ["sh", "-c", "exit 2"]}}))[0] is False
    assert await ask(port, {"exec": {"command": ["sleep", "60"]}}, 0.1) == (
        False,
        "timed out after 0.1 s",
    )
    ok, said = await ask(port, {"exec": {"command": ["/no/such/program"]}})
    assert not ok
    assert "No such file" in said


async def test_what_is_not_supported_says_so(port: int) -> None:
    assert await ask(port, {"grpc": {"port": 1}}) == (
        False,
        "grpc: not supported on process nodes",
    )
