"""Engine types are found by folder and by entry point, and a broken one is broken alone."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import engine_types as e

from pdserve.engines import registry
from pdserve.engines.control import EngineControl
from pdserve.engines.flow import EngineFlow
from pdserve.engines.pod_parts import EnginePod
from pdserve.engines.registry import BrokenEngineError, UnknownEngineError
from pdserve.engines.series import EngineSeries
from pdserve.engines.sglang.metrics import ABSENT
from pdserve.wire.metrics import ENGINE_SERIES

GOOD = "from pdserve.engines.pull_flow import PullFlow\nFLOW = PullFlow()\n"
BUILT_IN = registry.known()


def test_every_built_in_type_has_a_flow() -> None:
    assert BUILT_IN
    for name in BUILT_IN:
        assert isinstance(registry.flow(name), EngineFlow)


def test_a_type_is_found_by_its_entry_point(site: Path) -> None:
    e.package(site, "acme_engine", flow=GOOD)
    e.announce(site, {"Acme-2": "acme_engine"})
    assert registry.known() == tuple(sorted((*BUILT_IN, "Acme-2")))
    assert registry.flow("Acme-2").order == "prefill_first"
    assert registry.flow("Acme-2") is registry.flow("Acme-2")


def test_an_unknown_type_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownEngineError) as caught:
        registry.flow("Nothing")
    assert str(caught.value) == (
        f"engine type 'Nothing' is not known here (known: {', '.join(BUILT_IN)})"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("FLOW = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyError('x')", "KeyError"),
        ("", "AttributeError"),
        ("FLOW = object()", "acme_engine.flow.FLOW is no EngineFlow"),
    ],
)
def test_a_broken_type_is_an_error_of_its_own(
    site: Path, caplog: pytest.LogCaptureFixture, text: str, says: str
) -> None:
    e.package(site, "acme_engine", flow=text)
    e.package(site, "good_engine", flow=GOOD)
    e.announce(site, {"Acme": "acme_engine", "Good": "good_engine"})
    for _ in range(3):
        with pytest.raises(BrokenEngineError, match=says):
            registry.flow("Acme")
    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(logged) == 1, "said once"
    assert says in logged[0]
    assert isinstance(registry.flow("Good"), EngineFlow)


def test_an_announced_package_that_is_not_there_is_broken(site: Path) -> None:
    e.announce(site, {"Acme": "not_there"})
    with pytest.raises(BrokenEngineError, match="not_there"):
        registry.flow("Acme")


@pytest.mark.parametrize("name", ["has space", "-x", "a" * 64, "é"])
def test_a_name_that_no_spec_can_hold_is_no_type(site: Path, name: str) -> None:
    e.announce(site, {name: "acme_engine", "Good": "good_engine"})
    assert set(registry.known()) == {*BUILT_IN, "Good"}


def test_unreadable_metadata_of_another_package_hides_nothing(site: Path) -> None:
    e.announce(site, {"Good": "good_engine"})
    bad = site / "bad-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[x]\nno value here\n")
    assert "Good" in registry.known()


def test_a_built_in_type_cannot_be_taken_over(site: Path) -> None:
    e.package(site, "acme_engine", flow="raise SystemExit")
    e.announce(site, dict.fromkeys(BUILT_IN, "acme_engine"))
    for name in BUILT_IN:
        assert isinstance(registry.flow(name), EngineFlow)


def test_the_first_on_the_search_path_has_a_name(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e.announce(site, {"Acme": "later"})
    e.install(monkeypatch, e.announce(tmp_path / "first", {"Acme": "sooner"}))
    with pytest.raises(BrokenEngineError, match="sooner"):
        registry.flow("Acme")


def test_a_gateway_that_asks_for_flows_loads_nothing_of_the_operator() -> None:
    code = (
        "import sys; from pdserve.engines import registry\n"
        "for name in registry.known(): registry.flow(name)\n"
        "print([m for m in sys.modules if m.startswith(('pdserve.api', 'pdserve.controllers',"
        " 'pdserve.groups', 'pydantic', 'kopf', 'numpy'))])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


FACES = {
    "flow": GOOD,
    "pod": (
        "from pdserve.engines.pod_parts import PodParts\n"
        "class Pod:\n    def parts(self, facts): return PodParts(args=(facts.role,))\nPOD = Pod()\n"
    ),
    "control": "from pdserve.engines.control import JsonControl\nCONTROL = JsonControl()\n",
    "metrics": (
        "from pdserve.engines.series import EngineSeries\n"
        "METRICS = EngineSeries({'alive': ('acme_up',), 'steps': ('acme_steps_total',)})\n"
    ),
}


def test_the_four_faces_of_every_built_in_type() -> None:
    for name in BUILT_IN:
        assert isinstance(registry.pod(name), EnginePod)
        assert isinstance(registry.control(name), EngineControl)
        absent = ABSENT if name == "SGLang" else frozenset()
        assert set(registry.metrics(name).names) == set(ENGINE_SERIES) - absent


def test_series_of_all_types_are_asked_for_and_those_of_a_broken_one_are_not(site: Path) -> None:
    before = registry.series()
    e.package(site, "acme_engine", **FACES)
    e.package(site, "bad_engine", metrics=FACES["metrics"].replace("acme_up", "up{} or vector"))
    e.announce(site, {"Acme": "acme_engine", "Bad": "bad_engine"})
    registry.forget()
    names = registry.series()
    assert names["alive"] == ("acme_up", *before["alive"])
    assert names["steps"] == ("acme_steps_total", *before["steps"])
    assert {k: v for k, v in names.items() if k not in ("alive", "steps")} == {
        k: v for k, v in before.items() if k not in ("alive", "steps")
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"stepz": ("a",)}, "no quantity is called 'stepz'"),
        ({"steps": ("a", "")}, "steps: '' is no name of a series"),
        ({"steps": ("a-b",)}, "'a-b' is no name"),
        ({"steps": ("a[5m]) or increase(b",)}, "is no name"),
        ({"steps": ("a" * 129,)}, "is no name"),
    ],
)
def test_names_of_series_are_names(names: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        EngineSeries(names)
