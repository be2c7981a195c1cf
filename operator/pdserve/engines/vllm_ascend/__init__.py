"""vLLM on Ascend NPUs with its Mooncake connector, behind pdserve's engine proxy.

See docs/engines/vllm-ascend.md.
"""

TYPE = "vLLM-Ascend"
