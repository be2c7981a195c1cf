"""MindIE Motor's image, whose engine is vLLM-Ascend; see docs/engines/mindie.md.

MindIE Motor starts vLLM itself and routes between its instances; here pdserve does both, and the
engine in the image is used as it is. MindIE LLM, the older engine, is not served: it gets roles and
requests through MindIE's own Controller and Coordinator alone.
"""

TYPE = "MindIE"
