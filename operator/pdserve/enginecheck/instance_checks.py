"""Checks of one instance: paths, credentials, control, readiness, series, errors."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

from pdserve.enginecheck.pair import leg
from pdserve.enginecheck.probe import ProbeAnswer, ProbeError
from pdserve.enginecheck.subject import (
    GROUP,
    CheckedInstance,
    CheckSubject,
    NotCheckedError,
    UnkeptError,
    controlled,
    fresh_id,
)
from pdserve.engines import registry
from pdserve.wire import calls
from pdserve.wire.bounds import WireError
from pdserve.wire.links import LinkReport
from pdserve.wire.metrics import ALIVE, DECODE_QUANTITIES, PREFILL_QUANTITIES
from pdserve.wire.peers import PeerTable

READY_SECONDS: Final = 30.0
PAUSE: Final = 0.05
REFUSED: Final = frozenset({401, 403})
_FORM: Final = 'answer {"error": {"message": TEXT, "type": TEXT, "param": null, "code": TEXT}}'
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)( -?\d+)?")


async def health(subject: CheckSubject, target: CheckedInstance) -> str:
    """The health path answers 200."""
    path = subject.parts(target).health_path
    answer = await target.probe.call("GET", path, token=False)
    _expect(answer.status == 200, f"GET {path} gets {answer.status}: answer 200 while the process "
            "is up, without a credential")  # fmt: skip
    return f"GET {path} answers 200"


async def models(subject: CheckSubject, target: CheckedInstance) -> str:
    """`/v1/models` names the model; the first one is used where none was given."""
    answer = await target.probe.call("GET", calls.PATH_MODELS)
    _expect(answer.status == 200, f"GET {calls.PATH_MODELS} gets {answer.status}: answer 200")
    listed = answer.json().get("data")
    entries = listed if isinstance(listed, list) else []
    names = [e.get("id") for e in entries if isinstance(e, dict)]
    known = [n for n in names if isinstance(n, str) and n]
    _expect(known, f"GET {calls.PATH_MODELS} lists no model: answer "
            '{"object": "list", "data": [{"id": NAME}]}')  # fmt: skip
    subject.model = subject.model or known[0]
    _expect(subject.model in known, f"it serves {', '.join(known)!r:.200}, not {subject.model!r}: "
            "serve the model under the name that the gateway sends")  # fmt: skip
    return f"serves {subject.model!r}"


async def control(subject: CheckSubject, target: CheckedInstance) -> str:
    """A peer table needs the credential, names the instance, and gives way to no older one.

    Raises:
        UnkeptError: the rule is not kept.
    """
    report = await _links(subject, target)
    foreign = report.version > 0 and report.up | set(report.down) != subject.peers(target)
    if foreign and not subject.take_over:
        raise UnkeptError(
            f"it has peer table {report.version} of another group: check an instance that is "
            "in no group, or give --take-over"
        )
    target.version = max(1, report.version) + 1 if foreign or not report.version else report.version
    push = subject.push(target, target.version)
    bare = await controlled(target, push, token=False)
    _expect(bare.status in REFUSED, f"{push.method} {push.path} without the credential gets "
            f"{bare.status}: answer 401")  # fmt: skip
    answer = await controlled(target, push)
    _expect(answer.status in push.accepts - {409}, f"{push.method} {push.path} gets "
            f"{answer.status} {answer.shown()}: take the table over and answer 200")  # fmt: skip
    await controlled(target, subject.push(target, target.version - 1))
    alone = PeerTable(GROUP, target.version + 1, ()).to_json()
    other = await controlled(target, subject.control.put_peers(alone))
    _expect(400 <= other.status < 500, f"a table that does not name it gets {other.status}: "
            "answer 422 and keep the one it has")  # fmt: skip
    report = await _links(subject, target)
    _expect(report.version == target.version, f"after tables {target.version} and "
            f"{target.version - 1} its link report says {report.version}: "
            "keep the newest that names it")  # fmt: skip
    return f"took peer table {target.version}, and no older one"


async def ready(subject: CheckSubject, target: CheckedInstance) -> str:
    """Ready when the links of its table are verified.

    Raises:
        UnkeptError: the rule is not kept.
    """
    path, wanted = subject.parts(target).ready_path, subject.peers(target)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        report = await _links(subject, target)
        answer = await target.probe.call("GET", path, token=False)
        if report.up >= wanted and not report.down and answer.status == 200:
            return f"GET {path} answers 200, links up: {', '.join(sorted(report.up)) or 'none due'}"
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(PAUSE)
    down = "; ".join(f"{peer}: {why}" for peer, why in sorted(report.down.items()))
    missing = ", ".join(sorted(wanted - report.up))
    raise UnkeptError(
        f"GET {path} answers {answer.status}, links up: {', '.join(sorted(report.up)) or 'none'}, "
        f"missing: {missing or 'none'} ({down or 'no reason given'}): verify a link to each peer "
        "of the other role, and answer 200 then"
    )


async def series(subject: CheckSubject, target: CheckedInstance) -> str:
    """The series that the ratio loop reads are exposed."""
    path, names = subject.parts(target).metrics_path, registry.metrics(subject.type_name).names
    answer = await target.probe.call("GET", path, token=False)
    _expect(answer.status == 200, f"GET {path} gets {answer.status}: answer 200 with Prometheus' "
            "text format")  # fmt: skip
    found = _exposed(answer)
    _expect(found & set(names.get(ALIVE, ())), f"none of {', '.join(names.get(ALIVE, ()))} is at "
            f"{path}: without it every instance counts as missing")  # fmt: skip
    own = PREFILL_QUANTITIES if target.role == "prefill" else DECODE_QUANTITIES
    missing = [q for q in own if not found & set(names.get(q, ()))]
    if missing:
        return f"exposed, without {', '.join(missing)}: the ratio loop says Unknown for these"
    return f"all {len(own) + 1} quantities of a {target.role} are exposed"


async def credentials(subject: CheckSubject, target: CheckedInstance) -> str:
    """Legs and releases need the gateway's credential, which came with the peer table.

    Raises:
        NotCheckedError: no credential is set.
    """
    if not target.probe.token:
        raise NotCheckedError("set PDSERVE_TOKEN, here and for the engine: it runs without any")
    bare = await target.probe.call("POST", *leg(subject, target), token=False)
    _expect(
        bare.status in REFUSED,
        f"a leg without a credential gets {bare.status}: answer 401 to who has none of the "
        "credentials.request that came with the peer table",
    )
    release = subject.flow.release_leg(fresh_id())
    if release is not None:
        bare = await target.probe.call("POST", release.path, release.body, token=False)
        _expect(bare.status in REFUSED, f"POST {release.path} without a credential gets "
                f"{bare.status}: answer 401")  # fmt: skip
    return "401 without the credential"


async def errors(subject: CheckSubject, target: CheckedInstance) -> str:
    """What a client did wrong is 400 with an error object in OpenAI's form.

    Raises:
        UnkeptError: the rule is not kept.
    """
    path, _ = leg(subject, target)
    for body in (b'{"model": ', b"[]", b""):
        answer = await target.probe.call("POST", path, body)
        _expect(400 <= answer.status < 500, f"a body of {body!r} gets {answer.status}: answer 400")
        try:
            error = answer.json().get("error")
        except ProbeError as wrong:
            raise UnkeptError(f"{answer.status} for a body of {body!r}: {wrong}: {_FORM}") from None
        said = error.get("message") if isinstance(error, dict) else None
        _expect(isinstance(said, str) and said, f"{answer.status} for a body of {body!r}: {_FORM}")
    return "400 with OpenAI's error object"


async def _links(subject: CheckSubject, target: CheckedInstance) -> LinkReport:
    request = subject.control.get_links()
    answer = await controlled(target, request)
    _expect(answer.status in request.accepts, f"GET {request.path} gets {answer.status} "
            f"{answer.shown()}: answer 200 with a link report (is the token right?)")  # fmt: skip
    try:
        return subject.control.read_links(answer.body)
    except WireError as error:
        raise UnkeptError(f"GET {request.path}: {error}") from error


def _exposed(answer: ProbeAnswer) -> set[str]:
    found = set()
    for line in answer.body.decode(errors="replace").splitlines():
        if line.strip() and not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line.strip())
            _expect(sample, f"the line {line[:80]!r} is no sample of Prometheus' text format")
            found.add(sample[1] if sample else "")
    return found


def _expect(kept: object, message: str) -> None:
    if not kept:
        raise UnkeptError(message)
