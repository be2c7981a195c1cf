"""Measured values in: what the ratio loop may know about traffic and instances.

`source` is the protocol the controller codes to, `prometheus` its implementation, `promql` the
queries, `assemble` turns answers into samples, `breaker` leaves a dead server alone. No decision is
made here.
"""
