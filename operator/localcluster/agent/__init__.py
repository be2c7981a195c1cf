"""The node agent: one asyncio program that is the kubelet of every process node.

`agent` follows the pods bound to our nodes and keeps a `pods.PodWorker` for each. The worker
prepares `volumes` and `mounts` and runs one `containers.ContainerRunner` per container, which
starts processes through `sandbox`, watches them with `probes` and restarts them. `status` turns
the result into Kubernetes' pod status. `nodes` registers nodes and sends their heartbeats.
`faults` breaks things on request, `logs` answers `kubectl logs`. Pure, without I/O: `status`,
`fields`, `environment`, `images`, `backoff`.

A container here has no file system and no network of its own. It is a process of this machine
with its own mounts, process ids and loopback address, and it runs programs of this checkout.
"""
