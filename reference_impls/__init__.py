"""Runnable reference implementations of data-redundancy techniques, and what they stand on.

`techniques/<id>.py` holds one technique: its algorithm as functions on plain tensors, then one class that fulfils the
contract of `contract/`. Everything else is shared: `accounting/` counts and times, `redundancy/` measures,
`hosts/` adapts other people's models, `data/` and `models/` bring real material, `experiments/` puts a technique
beside its baseline.
"""
