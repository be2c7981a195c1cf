"""Profiles of a size: by roofline, by measured times, from files; and what bad ones say."""

from __future__ import annotations

import json

import pytest

from pdserve.ratio import learn
from pdserve.ratio.presets import PRESETS, preset
from pdserve.ratio.records import to_json
from pdserve.sizing.fit import FitError, fit_times
from pdserve.sizing.profile_file import ProfileFileError, read_profile
from pdserve.sizing.roofline import RooflineError, model_shape, roofline_profile

LLAMA_70B = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
}  # fmt: skip
MIXTRAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    assert model_shape(LLAMA_70B).weights == pytest.approx(70.6e9, rel=0.01)
    mixtral = model_shape(MIXTRAL)
    assert mixtral.weights == pytest.approx(46.7e9, rel=0.01)
    assert mixtral.active_weights() == pytest.approx(12.6e9, rel=0.02)
    assert model_shape(LLAMA_70B).kv_bytes == 327_680


# Milliseconds by aiconfigurator-core 0.12.0 (tables of vLLM), Llama-3.1-70B on 8 devices.
TABLES = [
    ("h100", "prefill", 1, 1200, 53.84), ("h100", "prefill", 4, 4096, 641.9),
    ("h100", "decode", 1, 1300, 10.14), ("h100", "decode", 64, 1300, 12.64),
    ("h100", "decode", 64, 8192, 18.87), ("a100-80g", "prefill", 1, 1200, 143.0),
    ("a100-80g", "prefill", 4, 4096, 1609.0), ("a100-80g", "decode", 1, 1300, 17.22),
    ("a100-80g", "decode", 64, 1300, 22.71),
]  # fmt: skip


@pytest.mark.parametrize(("device", "role", "batch", "length", "want"), TABLES)
def test_the_roofline_lies_within_half_of_measured_tables(
    device: str, role: str, batch: int, length: int, want: float
) -> None:
    profile = roofline_profile(model_shape(LLAMA_70B), device, 8, 4, 256)
    seconds = (
        profile.prefill.batch_seconds(batch, length, length * length)
        if role == "prefill"
        else profile.decode.step_seconds(batch, length)
    )
    assert seconds * 1e3 == pytest.approx(want, rel=0.5)


def test_the_roofline_at_full_peaks_is_below_the_presets() -> None:
    for device, name in (("h100", "llama2-70b-h100x8"), ("a100-80g", "llama2-70b-a100x8")):
        bound = roofline_profile(model_shape(LLAMA_70B), device, 8, 4, 64, 1.0, 1.0)
        real = PRESETS[name]
        assert bound.prefill.batch_seconds(1, 1000, 1e6) < real.prefill.batch_seconds(1, 1000, 1e6)
        assert bound.decode.step_seconds(16, 1000) < real.decode.step_seconds(16, 1000)


def test_fit_gives_coefficients_back_and_none_below_zero() -> None:
    want = (2e-2, 6e-5, 3e-9)
    sizes = [(b, n) for b in (1, 2, 4) for n in (128.0, 1024.0, 8192.0)]
    terms = [(1.0, b * n, b * n * n) for b, n in sizes]
    rows = [(t, sum(c * x for c, x in zip(want, t, strict=True))) for t in terms]
    assert fit_times(rows) == pytest.approx(want, rel=1e-6)
    curved = [(t, 1e-3 + 1e-5 * t[1] ** 0.9) for t in terms]
    assert min(fit_times(curved)) >= 0.0
    with pytest.raises(FitError, match="at least 3"):
        fit_times(rows[:2])


def _file(value: object) -> str:
    return json.dumps(value)


PLAIN = {
    "prefill": {"base": 0.02, "perToken": 6e-5, "perTokenSquared": 3e-9},
    "decode": {"base": 0.03, "perRequest": 2e-4, "perContextToken": 1.7e-7},
}


def test_files_of_three_forms_give_a_profile() -> None:
    plain = read_profile(_file(PLAIN), "p.json", 4, 64)
    assert (plain.prefill.per_token, plain.decode.base, plain.decode_slots) == (6e-5, 0.03, 64)
    h100 = preset("llama2-70b-h100x8", 4, 64)
    measured = {
        "prefill": [
            {"batch": b, "promptTokens": n, "seconds": h100.prefill.batch_seconds(b, n, n * n)}
            for b in (1, 4) for n in (256, 1024, 4096)
        ],
        "decode": [
            {"batch": b, "contextTokens": n, "seconds": h100.decode.step_seconds(b, n)}
            for b in (1, 16, 64) for n in (512, 2048)
        ],
    }  # fmt: skip
    fitted = read_profile(_file({"measured": measured}), "m.json", 4, 64)
    assert fitted.prefill.per_token == pytest.approx(h100.prefill.per_token, rel=1e-6)
    assert fitted.decode.per_request == pytest.approx(h100.decode.per_request, rel=1e-6)
    state = learn.start("shop", 4, 64, preset=h100)
    learned = read_profile(to_json(state), "c.json", 4, 64)
    assert learned.decode.base == pytest.approx(h100.decode.base)


BAD_FILES = [
    ("", "p.json"), ("[1]", "want an object"), ("{}", "neither coefficients"),
    ('{"measured": 3}', "measured: want an object"),
    ('{"measured": {"prefill": [], "decode": []}}', "at least 3"),
    ('{"measured": {"prefill": "x", "decode": []}}', r"measured\.prefill: want a list"),
    ('{"measured": {"prefill": [{"batch": 1}], "decode": []}}', r"prefill\[0\]: want an object"),
    ('{"measured": {"prefill": [{"batch": 0, "promptTokens": 1, "seconds": 1}]}}', "above 0"),
    (_file({**PLAIN, "decode": {**PLAIN["decode"], "base": -1}}), r"decode\.base: -1: want a num"),
    (_file({**PLAIN, "decode": {**PLAIN["decode"], "base": True}}), r"decode\.base: True"),
    (_file(PLAIN).replace("0.03", "NaN"), "not JSON"),
    (_file({**PLAIN, "decode": 3}), "decode: want"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD_FILES)
def test_a_bad_file_is_refused_with_its_field(text: str, says: str) -> None:
    with pytest.raises(ProfileFileError, match=says):
        read_profile(text, "p.json", 4, 64)


BAD_MODELS = [
    ({}, "num_attention_heads: missing"), ({**LLAMA_70B, "vocab_size": "x"}, "vocab_size: 'x'"),
    ({**LLAMA_70B, "num_hidden_layers": 0}, "num_hidden_layers: 0"),
    ({**LLAMA_70B, "hidden_size": True}, "hidden_size: True"),
    ({**LLAMA_70B, "kv_lora_rank": 512}, "kv_lora_rank"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "says"), BAD_MODELS)
def test_a_bad_model_config_is_refused_with_its_field(config: dict[str, object], says: str) -> None:
    with pytest.raises(RooflineError, match=says):
        model_shape(config)


def test_a_device_that_is_unknown_or_too_small_is_refused() -> None:
    with pytest.raises(RooflineError, match="want one of a100-80g"):
        roofline_profile(model_shape(LLAMA_70B), "tpu", 8, 4, 64)
    with pytest.raises(RooflineError, match="141 GB do not fit into 1 x h100"):
        roofline_profile(model_shape(LLAMA_70B), "h100", 1, 4, 64)
