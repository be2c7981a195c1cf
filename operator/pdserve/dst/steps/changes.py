"""Steps of users: counts, images, names and the domain."""

from __future__ import annotations

import random
from contextlib import suppress

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.api_fields import copy
from pdserve.dst.scene import BROKEN_IMAGE, Scene, domain_object
from pdserve.dst.steps.picks import a_service, mark_planned, name_of
from pdserve.kube.resource import ObjectKey


async def edit_counts(scene: Scene, rng: random.Random) -> str | None:
    """A user scales a ScenarioGroup whose counts are not the user's."""
    group = rng.choice(scene.world.seen(SCENARIO_GROUPS))
    if not group["metadata"].get("ownerReferences"):
        return None
    value = rng.choice((0, 1, 5))
    field, body = rng.choice(
        (("replicas", {"replicas": value}), ("prefill", {"prefill": {"replicas": value}}),
         ("decode", {"decode": {"replicas": value}}))
    )  # fmt: skip
    scene.patch(group, {"spec": body}, SCENARIO_GROUPS)
    return f"kubectl sets {field} of {name_of(group)} to {value}"


async def scale_service(scene: Scene, rng: random.Random) -> str | None:
    """A user changes the Fixed counts of a PDService."""
    service = a_service(scene, rng)
    if service is None:
        return None
    scenarios = copy(service["spec"]["scenarios"])
    fixed = [s for s in scenarios if s["ratio"]["mode"] == "Fixed"]
    chosen = rng.choice(fixed)
    what = rng.choice(("groups", "prefill", "decode"))
    chosen["ratio"]["fixed"][what] = rng.choice((1, 2))
    moved = ""
    if what != "groups" and rng.random() < 0.5:  # at constant total: instances flip
        other = "decode" if what == "prefill" else "prefill"
        chosen["ratio"]["fixed"][other] = 3 - chosen["ratio"]["fixed"][what]
        moved = f", {other} = {chosen['ratio']['fixed'][other]}"
    # Not drawn: every seed keeps its other steps.
    chosen["spares"] = sum(chosen["ratio"]["fixed"].values()) % 2
    moved += f", {chosen['spares']} spares"
    mark_planned(scene, service)
    scene.patch(service, {"spec": {"scenarios": scenarios}}, PDSERVICES)
    scene.watcher.asked.note()
    return f"{name_of(service)}/{chosen['name']}: {what} = {chosen['ratio']['fixed'][what]}{moved}"


async def new_image(scene: Scene, rng: random.Random) -> str | None:
    """A user rolls out another engine image."""
    return _planned(scene, rng, "engine", "image", ("pdserve/engine:test", "pdserve/engine:next"))


async def broken_image(scene: Scene, rng: random.Random) -> str | None:
    """A user rolls out an image whose engines never answer, and takes it back."""
    service = a_service(scene, rng)
    if service is None:
        return None
    before = service["spec"]["engine"]["image"]
    if before == BROKEN_IMAGE:
        return None
    scene.world.broken_images.add(BROKEN_IMAGE)
    scene.patch(service, {"spec": {"engine": {"image": BROKEN_IMAGE}}}, PDSERVICES)

    def revert() -> None:
        scene.reverts.remove(revert)
        scene.patch(service, {"spec": {"engine": {"image": before}}}, PDSERVICES)

    scene.reverts.append(revert)
    seconds = rng.uniform(3, 60)
    scene.later(seconds, revert)
    return f"{name_of(service)}: an image that never answers, for {seconds:.0f} s"


async def rename_model(scene: Scene, rng: random.Random) -> str | None:
    """A user renames the model."""
    return _planned(scene, rng, "model", "name", ("tiny", "tiny-2"))


def _planned(
    scene: Scene, rng: random.Random, part: str, field: str, values: tuple[str, ...]
) -> str | None:
    """A user sets a field of a service's spec to one of the values, which rolls its groups."""
    service = a_service(scene, rng)
    if service is None:
        return None
    value = rng.choice(values)
    mark_planned(scene, service)
    scene.patch(service, {"spec": {part: {field: value}}}, PDSERVICES)
    return f"{name_of(service)}: {part} {field} {value}"


async def lose_domain(scene: Scene, rng: random.Random) -> str | None:
    """The RoCEDomain is deleted, and made again later."""
    live = scene.world.api.store(ROCE_DOMAINS).objects.get(ObjectKey("", "az1"))
    if live is None:
        return None
    again, seconds = domain_object(scene), rng.uniform(5, 60)
    scene.delete(ROCE_DOMAINS, live)
    scene.watcher.trouble(seconds)

    def restore() -> None:
        with suppress(Exception):
            scene.world.create(ROCE_DOMAINS, again)

    scene.later(seconds, restore)
    return f"the RoCEDomain is deleted for {seconds:.0f} s"
