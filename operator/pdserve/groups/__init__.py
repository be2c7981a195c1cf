"""The life of P/D groups: what exists + what is wanted -> actions, status and reasons.

Pure: `controllers` observes, calls and executes; `explain`, simulations and tests call the same
functions. Steps, one module each: `repairs` (count faults, suspects, backoff), `removal` (drain,
delete), `scale` (which groups to add, roll or remove), `resize` (instances inside a group,
substitution), `tables` (gather, publish), `linking` (Linked gate), `scaleunit`, `report`
(conditions and status). `plan` runs them; `view` derives what they share.

Entry points:
    observe.instance_obs(pod, node, now, limits, since=...) -> InstanceObs
    plan.plan(observation, fabric) -> Plan
    polls.polls(observation, ...) -> Polls      (whose links to read, which to drain, push to)
    routable.routable(instances, tables, slots) -> tuple[RouteGroup, ...]
"""
