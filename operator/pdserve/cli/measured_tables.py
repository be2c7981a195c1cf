"""A profile from the tables of `aiconfigurator-core`: measured kernels, summed over a model.

Optional: it is imported only when a user asks for it. The search for a deployment is in the larger
package `aiconfigurator`, not in this one, so our own search runs on its times.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.sizing.fit import FitError, Row, fit_times, mean_error

BATCHES = (1, 4, 16, 64)
LENGTHS = (512, 1024, 2048, 4096, 8192)


class TablesError(Exception):
    """The tables cannot be read; the message says what is missing."""


def table_profile(
    model: str, system: str, backend: str, devices: int, prefill_slots: int, decode_slots: int
) -> PerformanceProfile:
    """A model on a system of its support matrix, split over `devices` by tensor parallelism.

    Raises:
        TablesError: the package is absent, or its tables do not hold the model or the system.
    """
    try:
        engine: Any = importlib.import_module("aiconfigurator_core.sdk.engine")
    except ImportError as error:
        raise TablesError(f"{error}; pip install aiconfigurator-core brings the tables") from error
    logging.disable(logging.WARNING)  # it names each table that is not exact
    try:
        handle = engine.EngineHandle.compile(model, system, backend, tp_size=devices)
        prefill, decode = _rows(handle)
        first, second = fit_times(prefill), fit_times(decode)
    except FitError as error:
        raise TablesError(f"{model} on {system}: {error}") from error
    except Exception as error:  # its errors share no base of their own
        raise TablesError(
            f"aiconfigurator-core does not hold {model} on {system} with {backend}: "
            f"{str(error).strip()[:200] or type(error).__name__}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    errors = f"{mean_error(prefill, first):.0%} and {mean_error(decode, second):.0%}"
    return PerformanceProfile(
        PrefillProfile(*first), DecodeProfile(*second), prefill_slots, decode_slots,
        f"aiconfigurator-core: {model}, {devices} x {system}, {backend}; mean error of the fit "
        f"{errors}",
    )  # fmt: skip


def _rows(handle: Any) -> tuple[list[Row], list[Row]]:
    """Seconds of prefill batches and of decode steps over the grid."""
    prefill: list[Row] = []
    decode: list[Row] = []
    for batch in BATCHES:
        for length in LENGTHS:
            if batch * length <= 4 * LENGTHS[-1]:
                seconds = float(handle.predict_prefill_latency(batch, length)) / 1e3
                prefill.append(((1.0, batch * length, float(batch * length**2)), seconds))
            seconds = float(handle.predict_decode_latency(batch, length, 2)) / 1e3
            decode.append(((1.0, batch, float(batch * length)), seconds))
    return prefill, decode
