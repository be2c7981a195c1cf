"""The fast plant's inner loop: functions over flat arrays, compiled where numba is installed.

Without numba the same functions run as Python over lists, slower and with equal results: both use
IEEE doubles, in the same order, and of the functions of mathematics only the square root, which is
exact in both.
"""
