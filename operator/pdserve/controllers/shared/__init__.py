"""What reconcilers share: the caches and what is read from them, and writes that several make.

`context` holds the parts of one operator process; the packages of the kinds stand above and do not
import each other.
"""
