"""Engine types: all that pdserve knows about a particular engine is in one folder per type.

A type is a package with four modules, its faces; each is loaded alone, where it is used:

- `flow` (`FLOW`): the request path, used by the gateway. See `engines.flow`.
- `pod` (`POD`): what the pod of an instance has for its engine. See `pod_parts`.
- `control` (`CONTROL`): peer tables, link reports and drains. See `engines.control`.
- `metrics` (`METRICS`): names of the series that the ratio loop reads. See `series`.

`registry` finds the types: the folders here, and what other distributions announce under the entry
point group `pdserve.engines`. The modules beside the folders are shared by all types: `pull_flow`
is the flow of engines whose decode pulls the KV, `pods` renders the pod of an instance. This
module imports none of them, so that the gateway never loads the operator's models.
"""
