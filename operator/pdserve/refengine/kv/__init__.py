"""KV cache: paged blocks, prefix reuse, leases on finished prefills, transport between instances.

`pool` hands out blocks, `payload` is the contiguous form that travels, `leases` keeps it until it
is pulled, `protocol` and `tcp` move it.
"""
