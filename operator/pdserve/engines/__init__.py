"""One adapter per engine type: all that pdserve knows about a particular engine.

Two faces that never meet. `flow` is the request path (bodies of the prefill and decode legs, what
a prefill reply means) and needs only `wire`; the gateway uses it. `pods` is the cluster side
(container, probes, ports, environment) and needs `api`; the controllers use it. This module
imports neither, so that the gateway never loads the operator's models.
"""
