"""The operator: kopf app, one reconciler per kind, the only place where plans meet the cluster.

Control flow, in modules: a change (`caches`, `kopf_app`) becomes a key (`triggers`). A `worker`
takes the key and calls a reconciler (`pdservice`, `scenariogroup`, `rocedomain`). It reads caches
(`group_view`), calls a pure planner (packages `groups`, `desired`, `ratio`) and carries the result
out (`group_actions`, `owned`). `linker` talks to instances, `ratio_loop` to Prometheus; `app` puts
it together, `rbac` lists every right it uses.
"""
