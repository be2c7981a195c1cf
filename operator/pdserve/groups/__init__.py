"""The life of P/D groups: what exists + what is wanted -> a list of actions and what to say.

Pure: `controllers` observes, calls, executes; `explain`, simulations and tests call the same
functions. Steps, one module each: `repairs` (count faults, suspects, backoff), `removal` (drain,
delete), `scale` (which groups to add, roll or remove), `resize` (instances inside a group,
substitution), `tables` (gather, publish), `linking` (Linked gate), `scaleunit`, `report`
(conditions and status). `plan` runs them in that order; `view` derives what they share.

Entry points:
    observe.instance_obs(pod, node, now, limits=HealthLimits(), since, silent)
    health.classify(pod, node, now, limits, since, silent) -> Verdict
    plan.plan(observation, fabric) -> Plan
    polls.polls(observation) -> Polls      (whose links to read, whom to tell to drain, push to)
    routes.routable(instances, tables, slots) -> tuple[RouteGroup, ...]
"""
