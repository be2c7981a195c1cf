"""pdserve: LLM serving with prefill and decode on separate instances, on Kubernetes.

Each subpackage is one layer; `docs/architecture.md` says what lives where, and import-linter
(`pyproject.toml`) holds the layers to it.
"""

__version__ = "0.1.0"
