"""The redundancy report: where the redundancy of a model is on some data, and what it could save here.

    from reference_impls.report import report

    result = report(model, loader, kind="video", budget={"flips": 0.01})
    print(result.table)
    result.save("report/")

For each axis the ideal reuse is simulated inside the model and the rest of it is run, so that a saving is told at an
error, beside the same measure on null controls, and beside what this machine could turn into time.
"""

from reference_impls.report.progress import Progress
from reference_impls.report.result import Budget, Finding, Result
from reference_impls.report.run import report

__all__ = ["Budget", "Finding", "Progress", "Result", "report"]
