"""The members of one instance that share the layers of a model: the leader asks, others compute.

`messages` is the wire, `handshake` proves both ends, `links` is the leader's side, `split` the
forward pass over all members, `worker` the other side. docs/decisions/048 gives the reasons.
"""
