"""Simulated scenarios under the real ratio loop and under the published laws of others.

- `kernel`: one scenario as a discrete-event simulation over flat arrays;
  `plant.ScenarioPlant` drives it.
- `shapes`, `traffic`: what clients ask; `traces` reads recorded ones.
- `virtual_prometheus`: the plant's counters as a Prometheus would scrape them, as the answers that
  `telemetry.assemble` reads.
- `policies`: what decides on counts; `policies.pdserve` is the real loop, unchanged.
- `closed_loop.run`: a shape under a policy; `clairvoyant` and `fluid` are the references.
- `results`, `report_html`, `report_png`: tables and plots.

Needs numpy (the extra `sim`), and numba to be fast. Nothing of the operator imports it.
"""
