"""What a process that judges one mutant sets for itself: its output and its limits."""

from __future__ import annotations

import math
import os
import resource
import signal
import time

MOST_MEMORY = 4 * 2**30
"""Bytes that one mutant may allocate; a loop that only collects ends there."""


def silence() -> None:
    """What tests of this process print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def limit(seconds: int) -> None:
    """End this process after so much time on the CPU, however busy the machine is.

    Also when it waits for what never comes: after twenty times as long by the clock.
    """
    limit_cpu(seconds)
    memory = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, memory))
    signal.alarm(20 * seconds)


def limit_cpu(seconds: int) -> None:
    """End this process after so many more seconds on the CPU."""
    most = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
