"""Generic access to a Kubernetes cluster; knows nothing of prefill, decode or RoCE.

Where to look:

- `resource` names a kind of object; `client` asks the API server about it (`connect` opens one);
  `errors` is what a refused request raises.
- `cache` keeps a pruned, always-listed copy of one kind; `prune` says what is kept of an object.
- `workqueue` turns triggers into deduplicated keys for workers.
- `ownership` creates and applies objects without ever taking a foreign one.
- `events` records what happened for people; `lease` elects one active process, from a thread of
  its own (`lease_thread`); `claim` says whose objects they are.

Nothing is imported here: `import pdserve.http1.pages` must not load the Kubernetes client.
"""
