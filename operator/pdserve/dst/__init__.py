"""Deterministic simulation test: the real operator in a hostile cluster, under virtual time.

`api_*` model an API server in memory, `virtual_time` is an event loop whose clock jumps, and
`world` adds scheduler, kubelets and engines. Nothing here is imported by a process that serves.
"""
