"""KV transfer: one pull of the engine's own transport beside iperf3, and what its checksum costs.

Sender and receiver are two processes on loopback, each on a CPU core of its own, as iperf3's are;
all are measured in turn, round by round. Loopback is no network: the figures say what the ends
cost, which is what bounds a fast network. iperf3 sends and receives one buffer of 128 KiB that
stays in the cache, over and over; KV from 16 MiB on comes from memory and goes to memory. The
receiver checks while it would wait for the sender, and then wakes less often for larger pieces: a
pull with the check may take less time than one without.

`--realtime` gives all of them the CPU before other processes, for machines that are not idle.
`--corruptions N` adds the frame check against N corruptions, `--requests N` so many requests
through real engines over a link that damages KV; with `--only-damage` nothing else runs. Run by
`make bench-kv`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, Progress, Row, report
from benchmarks.parts.kv_ends import CONGESTION, HOST, Order
from tests.support.engines import Client
from tests.support.kv_corrupting_link import requests_over_link
from tests.support.kv_corruptions import CLASSES, accepted

MIB = 1 << 20
BLOCK = 64 << 10
"""Bytes of a block of the built-in model."""
FLOORS = {1: 0.8, 4: 1.4, 16: 1.1, 64: 1.1, 256: 1.1}
"""By size in MiB: times the throughput of one stream of iperf3."""
SIZES = tuple(size * MIB for size in FLOORS)
CHECK_COST = 1.03
"""Most time of a checked pull in that of an unchecked one."""
PAPER_GAIN = 0.46
"""P/D-Serve (arXiv 2408.08147): block-free transfer takes so much less time than block-fixed."""
SMALL_BLOCKS = (16 << 10, 64 << 10)
COMPARED = 64 * MIB
"""Bytes of the comparison of block-free and block-fixed transfer."""


class Ends:
    """A sender and a receiver that wait for orders."""

    def __init__(self, cores: Sequence[int], unchecked: bool) -> None:
        command = [sys.executable, str(Path(__file__).parent / "parts" / "kv_ends.py")]
        more = ["--unchecked"] if unchecked else []
        self._sender = subprocess.Popen(
            [*command, "send", "--core", str(cores[0]), *more], stdout=subprocess.PIPE, text=True
        )
        port = _line(self._sender)
        self._receiver = subprocess.Popen(
            [*command, "receive", "--core", str(cores[1]), "--port", port, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pull(self, order: Order) -> list[float]:
        """Seconds of each pull."""
        assert self._receiver.stdin is not None
        self._receiver.stdin.write(order.line() + "\n")
        self._receiver.stdin.flush()
        times: list[float] = json.loads(_line(self._receiver))
        return times

    def stop(self) -> None:
        """End both."""
        for process in (self._receiver, self._sender):
            process.kill()
            process.wait()


@contextlib.contextmanager
def ends(cores: Sequence[int], unchecked: bool = False) -> Iterator[Ends]:
    """A pair of processes inside the `with` block."""
    made = Ends(cores, unchecked)
    try:
        yield made
    finally:
        made.stop()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"an end of the transfer stopped with status {process.wait()}")
    return line.strip()


class Iperf3:
    """One stream of iperf3, sender and receiver on the same two cores as the engine's."""

    name = "iperf3, 1 stream"

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores

    def rate(self, seconds: int) -> float:
        """Bytes per second that arrived."""
        port = str(_free_port())
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", HOST, "-p", port, "-A", str(self._cores[1])],
            stdout=subprocess.DEVNULL,
        )
        try:
            _await_listener(int(port))
            found = subprocess.run(
                ["iperf3", "-c", HOST, "-p", port, "-A", str(self._cores[0]),
                 "-t", str(seconds), "-C", CONGESTION, "--json"],
                capture_output=True, check=True, text=True,
            )  # fmt: skip
        finally:
            server.kill()
            server.wait()
        return float(json.loads(found.stdout)["end"]["sum_received"]["bits_per_second"]) / 8


class SocketLoop:
    """Where iperf3 is not installed: `sendall` and `recv_into` of 128 KiB, as two processes."""

    name = "a send/recv loop of 128 KiB (no iperf3 here)"

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores

    def rate(self, seconds: int) -> float:
        """Bytes per second that arrived."""
        listener = socket.create_server((HOST, 0))
        here, sender = os.sched_getaffinity(0), os.fork()
        if not sender:
            self._send(listener.getsockname()[1], seconds)
            os._exit(0)
        os.sched_setaffinity(0, {self._cores[1]})
        connection, _ = listener.accept()
        buffer, received, begin = memoryview(bytearray(128 << 10)), 0, time.perf_counter()
        while count := connection.recv_into(buffer):
            received += count
        taken = time.perf_counter() - begin
        os.sched_setaffinity(0, here)
        os.waitpid(sender, 0)
        connection.close()
        listener.close()
        return received / taken

    def _send(self, port: int, seconds: int) -> None:
        os.sched_setaffinity(0, {self._cores[0]})
        data, end = os.urandom(128 << 10), time.perf_counter() + seconds
        with socket.create_connection((HOST, port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION.encode())
            while time.perf_counter() < end:
                connection.sendall(data)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as made:
        return int(made.getsockname()[1])


def _await_listener(port: int) -> None:
    """Until the kernel lists a listener; a connection would be taken for the client."""
    want = f":{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 10
    while want not in Path("/proc/net/tcp").read_text():
        if time.monotonic() > deadline:
            raise SystemExit("iperf3 does not listen")
        time.sleep(0.01)  # the kernel announces no listener


class Rounds:
    """Figures of several rounds by name."""

    def __init__(self) -> None:
        self._figures: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """One round's figure."""
        self._figures.setdefault(name, []).append(value)

    def of(self, name: str) -> list[float]:
        """Those of all rounds."""
        return self._figures[name]

    def middle(self, name: str) -> float:
        """Their median."""
        return statistics.median(self._figures[name])

    def spread(self, name: str) -> float:
        """The largest less the smallest."""
        return max(self._figures[name]) - min(self._figures[name])


def times_for(size: int) -> int:
    """Pulls in a row: about 0.1 s."""
    return max(4, 512 * MIB // size)


def measure_sizes(
    cores: Sequence[int], yardstick: Iperf3 | SocketLoop, count: int, say: Progress
) -> Rounds:
    """Iperf3, and pulls of each size with and without the check, round by round."""
    rounds = Rounds()
    with ends(cores) as checked, ends(cores, unchecked=True) as unchecked:
        for number in range(count):
            rounds.add("vs", yardstick.rate(1) / 1e9)
            for size in SIZES:
                order = Order(size, BLOCK, times_for(size))
                # Each comes first as often as the other: a drift of the machine hits both.
                both = (checked, unchecked) if number % 2 else (unchecked, checked)
                taken = {pair: statistics.median(pair.pull(order)) for pair in both}
                rounds.add(f"pull {size}", size / taken[checked] / 1e9)
                rounds.add(f"cost {size}", taken[checked] / taken[unchecked])
            scattered = checked.pull(Order(64 * MIB, BLOCK, 8, scattered=True))
            rounds.add("scattered", 64 * MIB / statistics.median(scattered) / 1e9)
            say(f"round {number + 1} of {count}: {yardstick.name} {rounds.of('vs')[-1]:.2f} GB/s")
    return rounds


def size_rows(rounds: Rounds, name: str, count: int) -> list[Row]:
    """Throughput of each size beside the yardstick, and the cost of the check."""
    reference = rounds.middle("vs")
    rows = [
        Row(f"KV pull {size // MIB} MiB, checked", rounds.middle(f"pull {size}"), "GB/s", name,
            reference, FLOORS[size // MIB], "higher", count, rounds.spread(f"pull {size}"))
        for size in SIZES
    ]  # fmt: skip
    rows.append(
        Row("64 MiB into blocks in random order", rounds.middle("scattered"), "GB/s",
            "KV pull 64 MiB", rounds.middle(f"pull {64 * MIB}"), 0.8, "higher", count,
            rounds.spread("scattered"))
    )  # fmt: skip
    rows.extend(
        Row(f"time of a pull of {size // MIB} MiB with the check", rounds.middle(f"cost {size}"),
            "times", "the same pull without, in turn", 1.0, CHECK_COST, "lower", count,
            rounds.spread(f"cost {size}"))
        for size in SIZES
        if size >= 16 * MIB
    )  # fmt: skip
    return rows


def descriptor_rows(cores: Sequence[int], count: int, say: Progress) -> list[Row]:
    """Block-free (one frame) against block-fixed (a frame for each block), windows being equal."""
    rounds, rows = Rounds(), []
    with ends(cores) as checked:
        for _ in range(count):
            for block in SMALL_BLOCKS:
                free = Order(COMPARED, block, 6, COMPARED // block)
                fixed = Order(COMPARED, block, 6, 1)
                for name, order in (("free", free), ("fixed", fixed)):
                    seconds = statistics.median(checked.pull(order))
                    rounds.add(f"{name} {block}", seconds)
    for block in SMALL_BLOCKS:
        number = COMPARED // block
        free, fixed = rounds.middle(f"free {block}"), rounds.middle(f"fixed {block}")
        paired = zip(rounds.of(f"free {block}"), rounds.of(f"fixed {block}"), strict=True)
        alpha = statistics.median((b - a) / number for a, b in paired)
        modelled = free * (1 / (1 - PAPER_GAIN) - 1) / number
        what = f"64 MiB as {number} blocks of {block >> 10} KiB"
        rows.append(
            Row(f"{what}: block-free", 1e3 * free, "ms", "block-fixed, pipelined", 1e3 * fixed,
                1.0, "lower", count, 1e3 * rounds.spread(f"free {block}"))
        )  # fmt: skip
        rows.append(
            Row(f"{what}: modelled cost of a descriptor at which block-free saves "
                f"{PAPER_GAIN:.0%}", 1e6 * modelled, "us", "measured cost of a descriptor",
                max(1e6 * alpha, 0.001), 0.0, "higher", count)
        )  # fmt: skip
        say(f"{what}: {1e3 * free:.1f} ms block-free, {1e3 * fixed:.1f} ms block-fixed")
    return rows


def sender_row(count: int) -> Row:
    """The sender's part of the check, made once beside the copy out of the KV blocks."""
    import numpy as np

    from pdserve.refengine.kv.payload import Payload

    pool, taken = np.ones((512, BLOCK // 4), np.float32), list(range(512))
    copies, checks = [], []
    for _ in range(5 * count):
        begin = time.perf_counter()
        data = pool[taken].data.cast("B")
        copied = time.perf_counter()
        Payload.of(512 * 32, data)
        copies.append(copied - begin)
        checks.append(time.perf_counter() - copied)
    return Row("prefill: checksums of 64 MiB", 1e3 * statistics.median(checks), "ms",
               "gathering the blocks", 1e3 * statistics.median(copies), 1.0, "lower", len(checks),
               1e3 * (max(checks) - min(checks)))  # fmt: skip


def corruption_rows(number: int, seed: int, say: Progress) -> list[Row]:
    """The frame check against so many corruptions; a floor fails when one is accepted."""
    begin = time.monotonic()
    wrong = accepted(seed, number)
    say(f"{number} corruptions, seed {seed}: {sum(wrong.values())} accepted, "
        f"{time.monotonic() - begin:.0f} s")  # fmt: skip
    return [
        Row(f"accepted of {number // len(CLASSES)}: {kind}", wrong[kind], "frames",
            "corruptions", number // len(CLASSES), 0.0, "lower", number // len(CLASSES))
        for kind in CLASSES
    ]  # fmt: skip


async def request_rows(number: int, seed: int, say: Progress) -> list[Row]:
    """Requests through two real engines over a link that damages KV."""
    OUT.mkdir(parents=True, exist_ok=True)
    client, begin = Client(), time.monotonic()
    outcomes, damaged = await requests_over_link(client, seed, number, OUT / "kv-engines.log")
    await client.close()
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    say(f"{number} requests over a link that damaged {damaged.total()} pulls, seed {seed}: {told}, "
        f"{time.monotonic() - begin:.0f} s")  # fmt: skip
    return [
        Row("requests with a wrong token", outcomes["wrong tokens"], "requests",
            "over a link that damages KV", number, 0.0, "lower", number)
    ]  # fmt: skip


def main() -> int:
    """Measure all; the exit status.

    Raises:
        SystemExit: this process may use one CPU core only.
    """
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--corruptions", type=int, default=0, metavar="N", help="also check N of them")
    p.add_argument(
        "--requests", type=int, default=0, metavar="N", help="also send N over a bad link"
    )
    p.add_argument("--only-damage", action="store_true", help="measure no throughput")
    p.add_argument("--seed", type=int, default=secrets.randbits(32))
    p.add_argument("--realtime", action="store_true", help="before all other processes; as root")
    a = p.parse_args()
    say, rows = Progress(), list[Row]()
    if a.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if not a.only_damage:
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            raise SystemExit("two CPU cores are needed")
        yardstick = Iperf3(cores) if shutil.which("iperf3") else SocketLoop(cores)
        rounds = measure_sizes(cores, yardstick, a.rounds, say)
        rows += size_rows(rounds, yardstick.name, a.rounds)
        rows += [*descriptor_rows(cores, a.rounds, say), sender_row(a.rounds)]
    if a.corruptions:
        rows += corruption_rows(a.corruptions, a.seed, say)
    if a.requests:
        rows += asyncio.run(request_rows(a.requests, a.seed, say))
    return report("kv", rows)


if __name__ == "__main__":
    sys.exit(main())
