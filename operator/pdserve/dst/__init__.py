"""Deterministic simulation test: the real operator in a hostile cluster, under virtual time.

`pdserve dst` runs it; docs/testing.md shows how. No process that serves imports this package.

    virtual_time          an event loop whose clock jumps to the next timer
    api_*                 an API server in memory: kinds, patches, watches, its bad network
    world*                the rest of a cluster: scheduler, kubelets, engines, an operator
    values, metrics       odd values; Prometheus, with true or false values
    scene, steps          the cluster a schedule begins with, and what a schedule does to it
    watcher, lookups      the invariants, checked at every write
    schedule, runner      one schedule; many in parallel, and the reduction of those that fail
    plants                faults put back on purpose: schedules must find each
"""
