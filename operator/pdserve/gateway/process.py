"""One gateway process, from its command line until SIGTERM.

Engines know it by the credential in `PDSERVE_REQUEST_TOKEN_FILE` or `PDSERVE_REQUEST_TOKEN`, or by
the service's shared secret in `PDSERVE_TOKEN`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from pdserve.engines.credentials import REQUEST, Credential
from pdserve.gateway.access_log import AccessLog
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.gateway.auth import KeyRing
from pdserve.gateway.front import Front, body_bytes, read_front
from pdserve.gateway.route_source import RouteSource, parse_source
from pdserve.gateway.trace_settings import TraceSettings, read_tracing
from pdserve.http1.limits import ClientLimits
from pdserve.wire.names import PORT_HTTP

logger = logging.getLogger("pdserve.gateway")
DEFAULT_LIMITS = ClientLimits()
COLLECT = (5_000, 10, 10)
"""Thresholds of the garbage collector. The usual first one, 700, is some ten requests: a collection
finds nothing then: requests leave no cycles, unless an instance was lost."""


def run(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    try:
        body_bytes(os.environ, 0)
        front = read_front(os.environ)
        tracing = read_tracing(os.environ)
    except ValueError as error:
        sys.stderr.write(f"pdserve-gateway: {error}\n")
        return 2
    args = parse_arguments(argv)
    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    return int(uvloop.run(_serve(args, front, tracing)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options of the process; None: those of its command line.

    Raises:
        SystemExit: one is missing, unknown or malformed (argparse has said which).
    """
    parser = argparse.ArgumentParser(prog="pdserve-gateway", description=__doc__)
    parser.add_argument(
        "--routes", required=True, type=_source, metavar="SOURCE",
        help="file:PATH or configmap:NAMESPACE/NAME",
    )  # fmt: skip
    parser.add_argument(
        "--bind", default=os.environ.get("PDSERVE_BIND") or "127.0.0.1",
        help="address to listen on; PDSERVE_BIND; 127.0.0.1",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT_HTTP)
    parser.add_argument("--auth-dir", type=Path, help="directory of files with API keys")
    parser.add_argument(
        "--max-body-bytes", type=int, default=body_bytes(os.environ, DEFAULT_LIMITS.body),
        help="larger bodies get 413; PDSERVE_MAX_BODY_BYTES; 4 MiB",
    )  # fmt: skip
    parser.add_argument(
        "--access-log", choices=("on", "off"), default="on",
        help="a JSON line per request on standard output",
    )  # fmt: skip
    parser.add_argument("--room", type=int, default=1024, help="waiting requests per scenario")
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error")
    )
    return parser.parse_args(argv)


def _source(text: str) -> RouteSource:
    try:
        return parse_source(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _serve(
    args: argparse.Namespace, front: Front, tracing: TraceSettings | None
) -> int:  # fmt: skip
    options = GatewayOptions(
        credential=Credential.of(os.environ, REQUEST),
        limits=ClientLimits(body=args.max_body_bytes),
        room_limit=args.room,
        drain_seconds=args.drain_seconds,
        own_id=os.environ.get("PDSERVE_POD_NAME", ""),
        tracing=tracing,
        front=front,
    )
    keys = KeyRing(args.auth_dir) if args.auth_dir else None
    log = AccessLog(sys.stdout.buffer) if args.access_log == "on" else None
    gateway = GatewayServer(args.routes, options, keys, access_log=log)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    port = await gateway.start(args.bind, args.port)
    gc.collect()
    gc.freeze()  # modules and tables stay: no collection needs to look at them
    gc.set_threshold(*COLLECT)
    logger.info("listening on %s:%d", args.bind, port)
    stopped = asyncio.ensure_future(stop.wait())
    broken = asyncio.ensure_future(gateway.failed())
    await asyncio.wait((stopped, broken), return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if broken.done():
        logger.error("a background task ended", exc_info=broken.exception())
        code = 1
    stopped.cancel()
    broken.cancel()
    await gateway.stop()
    return code
