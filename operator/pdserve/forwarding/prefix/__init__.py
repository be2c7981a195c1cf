"""Prefix-aware order of prefills: which one holds the beginning of a prompt, and what it saves.

- `blocks`: a prompt as chained digests of its blocks.
- `index`: which instance holds which block, bounded in memory.
- `affinity`: what a hit saves, and when that is worth another order or a short wait.

Pure as all of `forwarding`. `dispatch` asks `affinity` for each request that has blocks.
"""
