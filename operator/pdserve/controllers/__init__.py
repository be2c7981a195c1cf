"""The operator: kopf app, one reconciler per kind, the only place where plans meet the cluster.

Control flow, in files: a change (`caches`, `kopf_app`) becomes a key (`triggers`), a `worker`
takes it and calls a reconciler (`pdservice`, `scenariogroup`, `rocedomain`), which reads caches
(`group_view`), asks a pure planner (`groups`, `counts`, `routing`, `ratio`) and carries the
answer out (`group_actions`, `owned`). `linker` talks to instances, `ratio_loop` to Prometheus,
`app` puts it together, `rbac` lists every right it uses.
"""
