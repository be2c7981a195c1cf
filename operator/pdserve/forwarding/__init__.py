"""(docstring by the owner)"""
