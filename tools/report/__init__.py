"""What the catalogue makes of a redundancy report: what to try first, and the page.

Measuring is `reference_impls.report`, which knows nothing of entries. Here its findings meet them: adaptation,
notebook, relation and location; and the verdict, which may be to do nothing.
"""
