"""Exact counts of MACs and bytes, the timing protocol, and the result record.

`record` imports no torch, because `tools.knowledge` validates committed results with it.
"""
