"""What an agent that ends in order leaves of its containers: nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.gateway_rig import eventually

from localcluster import processes
from localcluster.agent.containers import ContainerRunner, Surroundings
from localcluster.agent.host import AgentSettings
from localcluster.agent.sandbox import Launch, Sandbox

WITH_CHILD = "setsid sleep 1000 & echo $! > child; exec sleep 1000"
SPEC = {"name": "main", "image": "tool"}


@pytest.mark.parametrize("namespaces", [True, False])
async def test_a_container_whose_pod_is_given_up_ends_with_all_it_started(
    tmp_path: Path, namespaces: bool
) -> None:
    sandbox = Sandbox()
    await sandbox.check(tmp_path / "check")
    if namespaces and sandbox.why_not is not None:
        pytest.skip(f"no namespaces here: {sandbox.why_not}")
    if not namespaces:
        sandbox.why_not = "not wanted here"

    async def launch(_spec: Mapping[str, Any], log: Path) -> Launch:
        env = {"PATH": os.environ["PATH"]}
        argv = ["sh", "-c", WITH_CHILD]
        return Launch(argv, env, str(tmp_path), [], tmp_path / "c", log)

    up = asyncio.Event()
    up.set()
    host: Any = SimpleNamespace(sandbox=sandbox, settings=AgentSettings(), session=None)
    runner = ContainerRunner(
        SPEC,
        Surroundings(
            host=host,
            pod_name="default/pod",
            pod_uid="uid",
            address=lambda: "127.0.0.1",
            up=up,
            restart_policy="Always",
            grace=1.0,
            log_dir=tmp_path / "logs",
            launch=launch,
            changed=lambda: None,
        ),
    )
    life = asyncio.create_task(runner.run())
    child = tmp_path / "child"
    await eventually(lambda: child.exists() and bool(child.read_text()), "it has a child")
    assert runner.running is not None
    pids = [runner.running.pid]
    if not namespaces:  # else it is a number of their own
        pids.append(int(child.read_text()))
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    await eventually(lambda: not any(pid and processes.is_alive(pid) for pid in pids), "all end")
