"""What a schedule may do to the cluster: faults, changes by users, and odd values.

A step is a function of the scene and a random source of its own. It returns a text of what it did,
or None where it is not possible. Each step draws from its own seed, so leaving one out changes no
other; the reduction of a failing schedule depends on that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Final

from pdserve.dst.scene import Scene
from pdserve.dst.steps.changes import (
    broken_image,
    edit_counts,
    lose_domain,
    new_image,
    rename_model,
    scale_service,
)
from pdserve.dst.steps.control_plane import api_away, bad_network, restart_operator, step_clock
from pdserve.dst.steps.faults import (
    break_device,
    cordon,
    delete_pod,
    flap_node,
    freeze_engine,
    kill_pod,
    lose_node,
    restart_container,
    slow_starts,
    streams,
)
from pdserve.dst.steps.odd_values import (
    false_metrics,
    forge_owner,
    poison_answers,
    poison_node,
    poison_pod,
    poison_secret,
    poison_status,
    poison_table,
)

Step = Callable[[Scene, random.Random], Coroutine[object, object, str | None]]

STEPS: Final[dict[str, tuple[float, Step]]] = {
    step.__name__: (weight, step)
    for weight, step in (
        (3.0, delete_pod), (2.0, kill_pod), (1.0, restart_container), (1.0, freeze_engine),
        (1.5, lose_node), (1.5, flap_node), (0.7, break_device), (0.7, cordon), (0.7, slow_starts),
        (2.5, streams), (2.0, api_away), (1.5, bad_network), (1.5, restart_operator),
        (1.5, step_clock), (2.0, edit_counts), (1.0, scale_service), (1.0, new_image),
        (1.0, broken_image), (0.7, rename_model), (0.7, lose_domain), (2.0, poison_pod),
        (1.5, forge_owner), (1.0, poison_node), (1.5, poison_answers), (1.5, poison_table),
        (0.7, poison_secret), (1.0, poison_status), (1.0, false_metrics),
    )
}  # fmt: skip
"""Every step by name, with its weight in the draw."""
