"""`python -m pdserve.gateway` as a process: start, serve, SIGTERM without a broken stream."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from tests.support.gateway_rig import PATIENCE, SLO, Rig, eventually

from pdserve.gateway.process import run
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable


async def test_sigterm_lets_streams_finish(rig: Rig, tmp_path: Path) -> None:
    prefill, decode = await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")
    decode.token_seconds = 0.01
    group = RouteGroup(0, "r1", (prefill.route(), decode.route()))
    table = RouteTable("shop", 1, "tiny", "Reference", (RouteScenario("chat", SLO, (group,)),))
    (tmp_path / "routes.json").write_text(json.dumps(table.to_json()))
    # It ends with its streams, long before its time to drain does.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pdserve.gateway", "--port", "0",
        "--routes", f"file:{tmp_path / 'routes.json'}", "--drain-seconds", "600",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while b"listening on" not in (line := await process.stderr.readline()):
                assert line, "the gateway ended"
        rig.port = int(line.strip().rsplit(b":", 1)[1])
        task = asyncio.create_task(rig.complete(stream=True, max_tokens=30))
        await eventually(lambda: decode.running == 1, "streaming")
        process.send_signal(signal.SIGTERM)
        answer = await task
        assert answer.events[-1] == "[DONE]"
        assert answer.text.endswith("t29 ")
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_wrong_arguments_say_what_would_be_right(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        run(["--routes", "somewhere"])
    assert exit_status.value.code == 2
    assert "must be file:PATH or configmap:NAMESPACE/NAME" in capsys.readouterr().err
