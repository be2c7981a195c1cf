"""Generic access to a Kubernetes cluster; knows nothing of prefill, decode or RoCE.

Where to look:

- `resource` names a kind of object; `client` asks the API server about it (`connect` opens one);
  `errors` is what a refused request raises.
- `cache` keeps a pruned, always-listed copy of one kind; `prune` says what is kept of an object.
- `workqueue` turns triggers into deduplicated keys for workers.
- `ownership` creates and applies objects without ever taking a stranger's.
- `events` records what happened for people; `lease` elects one active process.
- `metrics` and `httpd` expose numbers and health; they import only the standard library, so the
  gateway and the engines may use them.

Nothing is imported here: `import pdserve.kube.metrics` must not load the Kubernetes client.
"""
