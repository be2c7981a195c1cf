"""The same pictures as `report_html`, as one PNG; needs matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pdserve.sim.experiments import Line


class PlotError(Exception):
    """The picture cannot be drawn; the message says why."""


def check_can_draw(path: Path) -> None:
    """Check what `draw` needs to write `path`.

    Raises:
        PlotError: it is not there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError(f"{path}: there is no matplotlib; pip install matplotlib brings it")


def draw(path: Path, lines: Sequence[Line]) -> None:
    """Write one row of pictures for each shape: prefills, decodes, attainment by minute.

    Raises:
        PlotError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(f"{path}: {error}; pip install matplotlib brings it") from error
    shapes = list(dict.fromkeys(line.shape for line in lines))
    figure = Figure(figsize=(15, 3 * len(shapes)), layout="constrained")
    axes = figure.subplots(len(shapes), 3, squeeze=False)
    for row, shape in enumerate(shapes):
        for line in (line for line in lines if line.shape == shape):
            times = [c[0] / 60 for c in line.series.counts] + [float(len(line.series.rate))]
            for column in (1, 2):
                counts = [c[column] for c in line.series.counts]
                axes[row][column - 1].step(times, [*counts, counts[-1]], where="post")
            shares = [float("nan") if a is None else 100 * a for a in line.series.attainment]
            axes[row][2].plot(range(len(shares)), shares, label=line.policy)
        for column, title in enumerate(("prefills", "decodes", "met SLO, % by minute")):
            axes[row][column].set_title(f"{shape}: {title}", fontsize=9)
        axes[row][2].legend(fontsize=6)
    try:
        figure.savefig(path, dpi=90)
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: {error}") from error
