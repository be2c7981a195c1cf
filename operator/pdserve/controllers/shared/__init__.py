"""What reconcilers share: the caches and what is read from them, and writes that several make.

`context` holds the parts of one operator process. The packages of the kinds (`service`, `group`,
`domain`, `ratio`) import this one, and do not import each other.
"""
