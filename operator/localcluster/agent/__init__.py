"""The node agent: one asyncio program that is the kubelet of every process node.

Where to look: `agent` follows the pods bound to our nodes and keeps a `pods.PodWorker` for each;
that prepares `volumes` and `mounts` and runs `containers.ContainerRunner`s, which start processes
through `sandbox`, watch them with `probes` and restart them; `status` says all that in Kubernetes'
words. `nodes` registers nodes and sends their heartbeats. `faults` breaks things on request, `logs`
answers `kubectl logs`. Pure, without I/O: `status`, `fields`, `environment`, `images`, `backoff`.

What a container here is not: an isolated file system or network. It is a process of this machine
with its own mounts, process ids and loopback address, from this checkout's programs.
"""
