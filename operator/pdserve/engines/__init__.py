"""Engine types: all that pdserve knows about a particular engine is in one folder per type.

A type is a package with up to four modules, its faces:

- `flow` (`FLOW`): the request path, used by the gateway. See `engines.flow`.

`registry` finds the types: the folders here, and what other distributions announce under the entry
point group `pdserve.engines`. The modules beside the folders are shared by all types: `pull_flow`
is the flow of engines whose decode pulls the KV, `pods` renders the pod of an instance. This
module imports none of them, so that the gateway never loads the operator's models.
"""
