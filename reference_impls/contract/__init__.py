"""The contract of a reference implementation, and the conformance checks that hold it to it."""

from reference_impls.contract.errors import (
    NoEffectWarning,
    UnsupportedHost,
    check_range,
    check_tensor,
    warn_no_effect,
)
from reference_impls.contract.technique import (
    Case,
    Cases,
    Expectation,
    Handle,
    Invalid,
    Redundancy,
    Setting,
    Technique,
    tensors,
)

__all__ = [
    "Case",
    "Cases",
    "Expectation",
    "Handle",
    "Invalid",
    "NoEffectWarning",
    "Redundancy",
    "Setting",
    "Technique",
    "UnsupportedHost",
    "check_range",
    "check_tensor",
    "tensors",
    "warn_no_effect",
]
