"""Runnable reference implementations of data-redundancy techniques, and what they stand on.

`techniques/<id>.py` holds one technique: its algorithm as functions on plain tensors, then one class that fulfils the
contract of `contract/`. Everything else is shared: `accounting/` counts and times, `layers/` holds neural parts,
`redundancy/` measures, `hosts/` adapts other people's models, `data/` and `models/` bring real material, `study/`
measures variants together, `benchmarks/` set the tasks of a family, and `experiments/` put a technique into them.
"""
