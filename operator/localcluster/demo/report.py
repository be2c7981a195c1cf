"""The demo's results: a table on screen, `report.json` for scripts, `report.html` for people.

It only writes what the steps measured; a step that did not hold is shown as such. The page is one
file without scripts or links to pictures, so that it can be mailed and opened offline; it follows
the reader's light or dark mode and the width of the screen.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from string import Template

from localcluster.demo.chart import NARROW, WIDE, Figure, drawing, legend
from pdserve.terms.json import JsonObject


@dataclass(frozen=True)
class ResultLine:
    """One line of the result: what was claimed, what was measured, and whether it held."""

    name: str
    claim: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Side:
    """One service of the comparison: what became of the same requests. Shares from 0 to 1."""

    name: str
    offered: int
    """Requests after the shift."""
    in_time: int
    """... of them whose first token came in time."""
    late: int
    """... answered, but later."""
    refused: int
    """... refused, or failed."""
    end_share: float
    """Share in time of those offered in the last seconds of the run."""
    devices_mean: float
    """Devices held, mean over the whole run."""
    devices_most: int

    @property
    def share(self) -> float:
        """Share of the offered requests whose first token came in time, 0 to 1."""
        return self.in_time / self.offered if self.offered else 0.0


@dataclass(frozen=True)
class Comparison:
    """The same requests to pdserve and to counts that stay as they are, with what to know of it."""

    own: Side
    fixed: Side
    notes: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """A question to the real model, and its answer. Times in seconds; 0: not measured."""

    question: str
    text: str
    """What the user reads; where there is no answer, why."""
    prompt_tokens: int
    output_tokens: int
    first_token: float
    """Until the first token."""
    each_token: float
    """Between two tokens, in the mean."""
    equal: bool
    """Whether one engine, which does prefill and decode itself, gave the same text."""

    @property
    def figures(self) -> str:
        """Tokens, times and the comparison, in words."""
        speed = f", then {1 / self.each_token:.1f} tokens/s" if self.each_token else ""
        return (
            f"{self.prompt_tokens} + {self.output_tokens} tokens, first token after "
            f"{self.first_token:.1f} s{speed}; "
            + ("equal to" if self.equal else "NOT equal to")
            + " the answer of one engine"
        )


@dataclass
class Report:
    """Collects claims and figures in the order they were made."""

    versions: dict[str, str]
    settings: dict[str, str]
    claims: list[ResultLine] = field(default_factory=list)
    comparison: Comparison | None = None
    shift: list[Figure] = field(default_factory=list)
    """Figures of the shift of load."""
    loss: list[Figure] = field(default_factory=list)
    """Figures of the lost instance."""
    answers: list[Answer] = field(default_factory=list)
    """Of the real model, where one was asked for."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether at least one claim was made and every claim held."""
        return bool(self.claims) and all(c.ok for c in self.claims)

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        bad = [c.claim for c in self.claims if not c.ok]
        if bad or not self.claims:
            return f"Not everything held: {'; '.join(bad) or 'nothing was measured'}."
        if self.comparison is None:
            return f"All {len(self.claims)} claims held."
        own, fixed = self.comparison.own, self.comparison.fixed
        return (
            f"When the requests changed, pdserve changed its instances by itself and soon answered"
            f" {own.end_share:.0%} in time again; the same requests to instances of fixed number"
            f" ended at {fixed.end_share:.0%}."
        )

    def to_json(self) -> JsonObject:
        """`{"steps": [{"name", "claim", "measured", "ok"}], "comparison", "versions", ...}`."""
        sides = (
            {"own": asdict(self.comparison.own), "fixed": asdict(self.comparison.fixed)}
            if self.comparison
            else None
        )
        return {
            "headline": self.headline,
            "steps": [
                {"name": c.name, "claim": c.claim, "measured": c.measured, "ok": c.ok}
                for c in self.claims
            ],
            "comparison": sides,
            "answers": [asdict(a) for a in self.answers],
            "versions": self.versions,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_html = folder / "report.json", folder / "report.html"
        as_json.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        as_html.write_text(self.to_html())
        return as_json, as_html

    def table(self) -> str:
        """The claims as text, one line each, below the result in one sentence."""
        width = max((len(c.claim) for c in self.claims), default=0)
        rows = (
            f"  {'ok    ' if c.ok else 'FAILED'}  {c.claim.ljust(width)}  {c.measured}"
            for c in self.claims
        )
        return "\n".join([f"  {self.headline}\n", *rows])

    def to_html(self) -> str:
        """The page."""
        page = resources.files(__package__).joinpath("report_page.html").read_text()
        return Template(page).substitute(
            headline=html.escape(self.headline),
            state="ok" if self.ok else "bad",
            held=f"{sum(c.ok for c in self.claims)} of {len(self.claims)}",
            seconds=f"{self.seconds:.0f}",
            comparison=_compared(self.comparison) if self.comparison else "",
            shift="".join(map(_figure, self.shift)),
            loss="".join(map(_figure, self.loss)),
            answers=_answered(self.answers) if self.answers else "",
            rows="".join(map(_row, self.claims)),
            facts="".join(
                f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
                for k, v in {**self.versions, **self.settings}.items()
            ),
        )


def _row(claim: ResultLine) -> str:
    state, word = ("ok", "held") if claim.ok else ("bad", "did not hold")
    return (
        f'<tr class="{state}"><td>{word}</td><td>{html.escape(claim.claim)}</td>'
        f"<td>{html.escape(claim.measured)}</td></tr>"
    )


def _compared(comparison: Comparison) -> str:
    """A table with a column per side, and the notes below."""
    sides = (comparison.own, comparison.fixed)
    rows = {
        "requests after the change": [f"{s.offered}" for s in sides],
        "first token in time": [f"{s.in_time} ({s.share:.0%})" for s in sides],
        "answered, but later": [f"{s.late}" for s in sides],
        "refused or failed": [f"{s.refused}" for s in sides],
        "in time at the end of the run": [f"{s.end_share:.0%}" for s in sides],
        "devices held, on average": [f"{s.devices_mean:.1f}" for s in sides],
        "devices held, at most": [f"{s.devices_most}" for s in sides],
    }
    heads = "".join(f'<th scope="col">{html.escape(s.name)}</th>' for s in sides)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(v)}</td>" for v in values)
        + "</tr>"
        for name, values in rows.items()
    )
    notes = "".join(f"<li>{html.escape(n)}</li>" for n in comparison.notes)
    return (
        f'<table class="sides"><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody>'
        f'</table><ul class="notes">{notes}</ul>'
    )


def _answered(answers: Sequence[Answer]) -> str:
    """A section with the questions and answers."""
    rows = "".join(
        f"<dt>{html.escape(a.question)}</dt><dd>{html.escape(a.text)}"
        f'<br><span class="small">{html.escape(a.figures)}</span></dd>'
        for a in answers
    )
    return (
        "<h2>What a real model answers</h2><p>Its instances are not paced: they compute as fast as"
        f' this machine does, one request at a time.</p><dl class="words">{rows}</dl>'
    )


def _figure(figure: Figure) -> str:
    return (
        f"<figure><figcaption><strong>{html.escape(figure.title)}.</strong> "
        f"{html.escape(figure.says)}</figcaption>{legend(figure)}"
        f"{drawing(figure, WIDE)}{drawing(figure, NARROW)}</figure>"
    )
