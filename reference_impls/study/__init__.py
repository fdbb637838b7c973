"""The machinery of measuring: scenarios, plans for both budgets, training, variants, records, and the runner."""

from reference_impls.study.intervals import over_items, over_seeds, paired
from reference_impls.study.plan import Context, Plan, Scenario
from reference_impls.study.registry import contenders, experiment, run, scenarios
from reference_impls.study.study import (
    BASELINE,
    TECHNIQUE,
    Cost,
    Study,
    items_of,
    measure_calls,
    measured,
    pooled,
    table,
)
from reference_impls.study.training import (
    Recipe,
    accuracy,
    cached,
    correlation,
    fork_seed,
    forward,
    predict,
    seeded,
    train,
    trained,
    training_macs,
)
