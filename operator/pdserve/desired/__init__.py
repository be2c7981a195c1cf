"""What the operator wants to exist and what statuses say: the pure half of the controllers.

Objects, counts, routes, statuses and conditions as functions of typed models and of what was
observed. No clock, no network, no Kubernetes client: `controllers` reads, calls these and writes.
"""
