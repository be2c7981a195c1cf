"""Metrics of every process: `pdserve_build_info`, `process_*` as usual elsewhere, and tasks.

Read from /proc at each scrape; where there is no /proc, only processor time and tasks are reported.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from pathlib import Path
from typing import Final

from pdserve.exposition.registry import Registry

_PROC: Final = Path("/proc")


def tell_process(registry: Registry, component: str, version: str) -> None:
    """Declare them in `registry`; values are read at each exposition.

    Args:
        registry: of the process.
        component: operator, gateway or engine.
        version: of pdserve.
    """
    build = registry.gauge(
        "pdserve_build_info",
        "1, with the version of pdserve and of Python.",
        ("component", "version", "python"),
    )
    build.labels(component, version, platform.python_version()).set(1)
    cpu = registry.counter("process_cpu_seconds_total", "Processor time, user and system.")
    resident = registry.gauge("process_resident_memory_bytes", "Resident memory.")
    virtual = registry.gauge("process_virtual_memory_bytes", "Virtual memory.")
    started = registry.gauge("process_start_time_seconds", "Start, in seconds since the epoch.")
    opened = registry.gauge("process_open_fds", "Open file descriptors.")
    most = registry.gauge("process_max_fds", "File descriptors that may be open.")

    tasks = registry.gauge(
        "pdserve_event_loop_tasks", "Tasks of the event loop; a number that only grows is a leak."
    )

    def read() -> None:
        tasks.set(_tasks())
        times = os.times()
        used = times.user + times.system
        cpu.inc(max(used - cpu.value(), 0.0))
        most.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            # After the name, which may hold anything: fields 3 and up of proc_pid_stat(5).
            fields = (_PROC / "self/stat").read_text(errors="replace").rpartition(")")[2].split()
            uptime = float((_PROC / "uptime").read_text().split()[0])
            opened.set(sum(1 for _ in (_PROC / "self/fd").iterdir()))
        except OSError:
            return
        virtual.set(int(fields[20]))
        resident.set(int(fields[21]) * resource.getpagesize())
        if not started.value():
            age = uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
            started.set(round(time.time() - age, 2))

    registry.on_collect(read)


def _tasks() -> int:
    """Tasks of the running event loop that have not ended; 0 outside one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
