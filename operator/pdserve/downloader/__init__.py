"""Downloads weights onto a node: the init container of `model.source.uri`.

`node_copy` decides whether there is anything to do and publishes the result whole or not at all,
`contents` knows files, manifests and archives, `transfer` fetches one file over HTTP, `access` what
the Secret holds. The standard library alone: it is in the gateway's image, which every operator
knows.
"""
