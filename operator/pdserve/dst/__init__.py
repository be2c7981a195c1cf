"""Deterministic simulation test: the real operator in a hostile cluster, under virtual time.

`pdserve dst` runs it; docs/testing.md shows how. Nothing here is imported by a process that serves.

    virtual_time          an event loop whose clock jumps to the next timer
    api_*                 an API server in memory: kinds, patches, watches, its bad network
    world*                around it: scheduler, kubelets, engines, garbage collection, an operator
    values, metrics       what no client sends on purpose; Prometheus, with true or false values
    scene, steps          the cluster a schedule begins with, and what a schedule does to it
    watcher, lookups      the invariants, judged at every write
    schedule, runner      one schedule; many, side by side, and cutting down those that fail
    plants                faults put back on purpose: each must be found
"""
