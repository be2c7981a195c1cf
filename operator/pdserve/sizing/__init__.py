"""Sizes a scenario before it exists: from an SLO and traffic to groups, ratio and devices.

- `roofline`: a profile estimated from a model's shape and a device's data sheet.
- `fit`: a profile from measured times.
- `profile_file`: a profile from what a user names.
- `unsplit`: instances that do prefill and decode both, for comparison.
- `size`: the search, its sensitivity, and the prompt length from which splitting pays.
- `size_text`: the answer for people and for scripts.

Pure but for numbers that are passed in: files are read by `cli.size`. Placement is not asked.
"""
