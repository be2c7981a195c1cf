"""What the demo showed: a table on screen, `report.json` for scripts, `report.html` for people.

Only writes down what the steps measured; a step that did not hold is shown as such. Plots are
static SVG inside one HTML file, so that the report can be mailed and opened offline.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

INK = "#1f2933"
MUTED = "#7b8794"
COLORS = ("#2f6fde", "#d9822b", "#1c8c6c", "#a23bbd", "#c0392b", "#5d6d7e")


@dataclass(frozen=True)
class Claim:
    """One line of the result: what was claimed, what was measured, and whether it held."""

    name: str
    claim: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Series:
    """Points of one line; `x` seconds since the step began."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    step: bool = False


@dataclass(frozen=True)
class Plot:
    """A time plot; `marks` are (x, label) verticals, `target` a horizontal line."""

    title: str
    unit: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()
    target: tuple[float, str] | None = None
    log: bool = False
    dots: bool = False


@dataclass
class Report:
    """Collects claims and plots in the order they were made."""

    versions: dict[str, str]
    settings: dict[str, str]
    claims: list[Claim] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True when at least one claim was made and every claim held."""
        return bool(self.claims) and all(c.ok for c in self.claims)

    def to_json(self) -> dict[str, Any]:
        """`{"steps": [{"name", "claim", "measured", "ok"}], "versions", "seconds"}`."""
        return {
            "steps": [
                {"name": c.name, "claim": c.claim, "measured": c.measured, "ok": c.ok}
                for c in self.claims
            ],
            "versions": self.versions,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_html = folder / "report.json", folder / "report.html"
        as_json.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        as_html.write_text(self._html())
        return as_json, as_html

    def table(self) -> str:
        """The claims as text, one line each."""
        width = max((len(c.claim) for c in self.claims), default=0)
        return "\n".join(
            f"  {'ok    ' if c.ok else 'FAILED'}  {c.claim.ljust(width)}  {c.measured}"
            for c in self.claims
        )

    def _html(self) -> str:
        rows = "".join(
            f"<tr class='{'ok' if c.ok else 'bad'}'><td>{'held' if c.ok else 'did not hold'}</td>"
            f"<td>{html.escape(c.claim)}</td><td>{html.escape(c.measured)}</td></tr>"
            for c in self.claims
        )
        facts = "".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
            for k, v in {**self.versions, **self.settings}.items()
        )
        plots = "".join(f"<figure>{_svg(p)}</figure>" for p in self.plots)
        verdict = "Every step held." if self.ok else "Not every step held."
        page = resources.files(__package__).joinpath("report_page.html").read_text()
        return Template(page).substitute(
            verdict=verdict, seconds=f"{self.seconds:.0f}", rows=rows, plots=plots, facts=facts
        )


def _svg(plot: Plot) -> str:
    with mpl.rc_context({"font.size": 10, "svg.fonttype": "none", "axes.edgecolor": MUTED}):
        figure, axes = plt.subplots(figsize=(9.2, 2.9), layout="constrained")
        for i, s in enumerate(plot.series):
            color = COLORS[i % len(COLORS)]
            if plot.dots:
                axes.plot(s.x, s.y, ".", ms=4, alpha=0.6, color=color, label=s.label)
            else:
                axes.plot(
                    s.x, s.y, lw=2, color=color, label=s.label,
                    drawstyle="steps-post" if s.step else "default",
                )  # fmt: skip
        if plot.target:
            axes.axhline(plot.target[0], color=MUTED, ls="--", lw=1, label=plot.target[1])
        for x, label in plot.marks:
            axes.axvline(x, color=INK, lw=0.8, alpha=0.5)
            axes.annotate(
                label, (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
        if plot.log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(plot.title, loc="left", color=INK, fontsize=11)
        axes.set_ylabel(plot.unit, color=MUTED)
        axes.set_xlabel("seconds", color=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.2)
        if plot.series:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        out = io.StringIO()
        figure.savefig(out, format="svg")
        plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
