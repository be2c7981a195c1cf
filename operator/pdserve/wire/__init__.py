"""Contracts between pdserve's processes: everything one process writes and another reads.

Operator, gateway and engines agree only through this package. It holds names, shapes and
(de)serialisation; no I/O, no clock, no decisions. Neighbours: `api` holds what *people* write,
`engines` what differs per engine type.
"""
