"""`pdserve demo`: from nothing to a service that does its job, in minutes, on one machine.

`stage` sets the cluster up, `steps`, `shift`, `window` and `real_model` show and measure, `fixed`
is the service that the shift is compared with, `watch` records the cluster meanwhile, `report`
writes the results.
Exit status 0 only if every step held.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from localcluster import binaries
from localcluster.cluster import LocalCluster
from localcluster.demo import fixed, shift, steps, upgrade, window
from localcluster.demo.real_model import real_model
from localcluster.demo.report import Report
from localcluster.demo.stage import (
    SERVICE,
    DemoError,
    Periods,
    Stage,
    checkout_root,
    install,
    pacing_validity,
    start_cluster,
)
from localcluster.errors import LocalError
from pdserve import __version__
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.models.errors import ModelError
from pdserve.models.store import StoredModel, get_model

NAME = "demo"


def add_parser(commands: Any) -> None:
    """Add `demo` to the command line."""
    parser = commands.add_parser("demo", help="start a local cluster and watch pdserve do its job")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running afterwards")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="where reports go (%(default)s)"
    )
    parser.add_argument(
        "--model", metavar="NAME",
        help="also serve this real model, a name of `pdserve model get`; fetched once",
    )  # fmt: skip
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> int:
    """Run it; 0 if every step held, 1 if not, 130 when interrupted."""
    began = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", flush=True)

    # Before all else: an unknown name, or no network, costs no minutes and no cluster that runs.
    try:
        model = get_model(arguments.model, say=progress) if arguments.model else None
    except (ModelError, ImportError) as error:
        print(f"no demo with model {arguments.model}: {error}", file=sys.stderr)
        return 1
    # A terminated demo cleans up like an interrupted one; shells start background jobs deaf to
    # SIGINT, so that is set as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out: Path = arguments.out
    cluster = LocalCluster(NAME, out.absolute() / "cluster")
    report = Report(_versions(), {})
    keep = False
    try:
        cluster.down()
        root = checkout_root()
        progress("starting a Kubernetes control plane and 12 process nodes (3 racks x 2 leaves)")
        start_cluster(cluster, root, progress, keep=arguments.keep)
        asyncio.run(_show(cluster, root, report, progress, model))
        keep = bool(arguments.keep)
    except (DemoError, LocalError, KubeError) as error:
        print(f"\nthe demo stopped: {error}", file=sys.stderr)
        print(f"logs until the next run: {out / 'logs'}", file=sys.stderr)
        return 1
    finally:
        if not keep:
            _end(cluster, out)
    report.seconds = time.monotonic() - began
    as_json, as_html = report.write(out)
    print(f"\n{report.table()}\n\n  {as_json}\n  {as_html}")
    if keep:
        print(_NEXT.format(kubeconfig=cluster.kubeconfig, state=cluster.state_dir, name=NAME))
    return 0 if report.ok else 1


async def _show(
    cluster: LocalCluster, root: Path, report: Report, progress: Any, model: StoredModel | None
) -> None:
    periods = Periods()
    report.settings |= {
        "control period": f"{periods.control:g} s (60 by default)",
        "period of quick reactions": f"{periods.fast:g} s (15 by default)",
        "window of measurements": f"{periods.window:g} s (60 by default)",
        "engines": "paced to four times the times of profile demo-small",
        "processor cores": f"{os.cpu_count()}",
    }
    progress("periods: " + ", ".join(f"{k} {v}" for k, v in report.settings.items()))
    client = await connect(cluster.kubeconfig)
    try:
        stage = Stage(cluster, root, binaries.kube().path("kubectl"), binaries.helm(), client)
        await install(stage, periods, progress)
        progress("step 1: two scenarios come up")
        await steps.come_up(stage, report, progress)
        await fixed.apply(stage)  # starts while step 2 goes on
        progress("step 2: real prompts, real text")
        await steps.same_text(stage, report, progress)
        progress("step 3: the traffic mix shifts, the ratio follows; fixed counts beside it")
        await shift.ratio_follows(stage, periods, report, progress)
        progress("step 4: a decode instance is killed under load")
        await steps.decode_killed(stage, report, progress)
        progress("step 5: a rolling upgrade, taken back in the middle")
        await upgrade.upgrade_undone(stage, report, progress)
        progress("step 6: a window by clock opens, and what it asks for serves already")
        await window.window_opens(stage, report, progress)
        report.settings["pacing"] = await pacing_validity(stage)
        progress(f"pacing: {report.settings['pacing']}")
        if model is not None:
            progress(f"step 7: {model.name}, a real model, at this machine's full speed")
            await real_model(stage, model, SERVICE, report, progress)
    finally:
        await client.close()


def _end(cluster: LocalCluster, out: Path) -> None:
    """End the cluster, keeping its logs beside the report."""
    logs = cluster.log.parent
    if logs.is_dir():
        kept = out / "logs"
        if kept.exists():
            shutil.rmtree(kept)
        logs.rename(kept)
        logs.mkdir()
    cluster.down()


def _versions() -> dict[str, str]:
    return {
        "pdserve": __version__,
        "kubernetes": binaries.KUBERNETES_VERSION,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("kopf", "numpy")},
    }


_NEXT = """
The cluster stays up. Try:
  export KUBECONFIG={kubeconfig}
  kubectl get pds,psg,rdom,pods -o wide
  kubectl pdserve status demo
  kubectl pdserve explain demo chat
End it with: pdserve local down --name {name} --state-dir {state}
"""
