"""Find words that make people of processes, or riddles of plain facts, in all text and names.

All tracked text files below `PLACES` and their paths are read: prose, messages and identifiers
(`told_of` and `toldOf` read as "told of"). `WORDS` says what to write instead.

`hack/plain_words.allow` holds what stays, one `phrase: reason` or `path: reason` a line. A phrase
allows a word only where the whole phrase stands; a path leaves out one file. Ends with 1 and one
line per finding.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOW = Path(__file__).with_suffix(".allow")
PLACES = (
    "operator", "docs", "charts", "crds", "tests", "hack", "benchmarks", "examples",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "Dockerfile",
)  # fmt: skip

_WHO = "name who: a user, a client, the operator, another process; or use the passive"
WORDS = {
    r"(?:no|some|any|every)body(?:s|'s)?": _WHO,
    r"(?:some|any|every)one(?:s|'s)?|no one": _WHO,
    r"who(?:ever|mever|soever)": _WHO,
    r"strangers?|twins?|twinned|forerunners?|orphaned children": "foreign, ambiguous, predecessor",
    r"belie(?:f|fs|ve|ves|ved|ving)|opinions?|doubt(?:s|ed)?": "estimate, assume, accept, know",
    r"gloomy|angry|evil|sulk(?:s|ing)?|brave|clever": "say what differs: pessimistic, hostile",
    r"blam(?:e|es|ed|ing)|culprits?|guilty|innocent": "bottleneck, cause, attribute to, charge",
    r"distrust(?:s|ed)?": "reject, refuse",
    r"shun(?:s|ned|ning)?": "exclude, avoid",
    r"rescu(?:e|es|ed|ing)": "repair, replace, recover",
    r"stor(?:y|ies)|tales?|rumou?rs?|gossip|hearsay": "life cycle, sequence, report",
    r"pok(?:e|es|ed|ing)": "reschedule, wake, notify",
    r"(?:is|are|was|be|been|being) told|told of|tells? of": "receives, learns, reports",
    r"lied|liars?|lying": "false, wrong, forged",
    r"hop(?:e|es|ed|ing)|wish(?:es|ed)?": "expect, intend, request",
}
"""By pattern of a word, what to say instead."""
_BANNED = [(re.compile(rf"(?<![a-z])(?:{word})(?![a-z])"), say) for word, say in WORDS.items()]


def plain(line: str) -> str:
    """A line in lower case, with identifiers split into their words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", line).lower()


def words(line: str, phrases: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each banned word of a line outside allowed `phrases`, and what to say instead."""
    text = plain(line)
    for phrase in phrases:
        text = text.replace(plain(phrase), " ")
    for pattern, say in _BANNED:
        for found in pattern.findall(text):
            yield found, say


def allowed(text: str) -> dict[str, str]:
    """Reason by phrase or path."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {key.strip(): why.strip() for key, _, why in (line.partition(": ") for line in lines)}


def texts(root: Path) -> dict[str, str]:
    """Text by path of all files below `PLACES` that git tracks or is about to."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {}
    for name in listed.stdout.splitlines():
        raw = (root / name).read_bytes() if (root / name).is_file() else b"\0"
        if b"\0" not in raw:
            found[name] = raw.decode(errors="replace")
    return found


def complaints(files: dict[str, str], allow: dict[str, str]) -> list[str]:
    """One line per word that is not allowed, per entry without a reason, and per spare entry.

    Line 0 of a file is its path.
    """
    whole = "\n".join(map(plain, files.values()))
    lines = [
        f"{name}:{number}: {word!r}: {say}"
        for name, text in files.items()
        if name not in allow
        for number, line in enumerate([name, *text.splitlines()])
        for word, say in words(line, allow)
    ]
    for entry, why in allow.items():
        if not why:
            lines.append(f"{ALLOW.name}: {entry}: no reason")
        if entry not in files and plain(entry) not in whole:
            lines.append(f"{ALLOW.name}: {entry}: stands nowhere any more")
    return lines


def main() -> int:
    """Check this repository."""
    files = texts(ROOT)
    lines = complaints(files, allowed(ALLOW.read_text()))
    print("\n".join(lines) or f"{len(files)} files: plain words (docs/contributing.md)")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
