"""Slots of one instance, and the hints about them that gateways get.

Pure counting. A prefill's slot is held from accept until its KV is gone; a decode has its slots
plus prefetch credits. `epoch` rises with every change, so that a gateway can tell a newer hint
from an older one that arrived later.
"""

from __future__ import annotations

from pdserve.engines.instance_answers import SlotHint


class Slots:
    """Counts used slots; never lets more than `total` be taken."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.epoch = 0

    @property
    def free(self) -> int:
        """How many slots can be taken now, 0 or more."""
        return self.total - self.used

    def take(self) -> bool:
        """Take one; False when all are used."""
        if self.used >= self.total:
            return False
        self.used += 1
        self.epoch += 1
        return True

    def give_back(self) -> None:
        """Return one slot.

        Raises:
            ValueError: none was taken.
        """
        if self.used <= 0:
            raise ValueError("a slot was returned that was not taken")
        self.used -= 1
        self.epoch += 1

    def hint(self, free_in: float) -> SlotHint:
        """The statement of this moment; `free_in` seconds matter only when all are used."""
        wait = 0 if self.free else max(1, round(free_in * 1000))
        return SlotHint(self.free, self.total, wait, self.epoch)
