"""The contract of a reference implementation, and the conformance checks that hold it to it."""

from reference_impls.contract.errors import (
    NoEffectWarning,
    UnsupportedHost,
    check_frame,
    check_range,
    check_tensor,
    warn_no_effect,
)
from reference_impls.contract.knobs import Choice, Given, Integer, Knob, Number, Switch
from reference_impls.contract.technique import (
    Case,
    Cases,
    Expectation,
    Handle,
    Invalid,
    Redundancy,
    Setting,
    Technique,
    generator,
    tensors,
)
