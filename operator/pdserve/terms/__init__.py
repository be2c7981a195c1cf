"""Words that every package uses alike: roles, targets, devices, times and amounts.

- `roles`: what an instance does; `slo`: what a scenario promises; `devices`: one accelerator.
- `times`: RFC 3339 texts <-> seconds since the epoch; `quantity`: Kubernetes' amounts.
- `failures`: how a request to an instance fails.
- `shown`: any value, short enough for a message.

One value has one form here, so no package copies another's field by field. How such a value is
written to objects and tables is not decided here: `api` and `wire` do that. Imports nothing of
pdserve. Pure.
"""

from pdserve.terms.devices import Device
from pdserve.terms.roles import ROLES, Role
from pdserve.terms.slo import Slo

__all__ = ["ROLES", "Device", "Role", "Slo"]
