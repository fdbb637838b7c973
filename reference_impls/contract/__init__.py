"""The contract of a reference implementation, and the battery of checks that holds it to it."""

from reference_impls.contract.errors import (
    NoEffectWarning,
    UnsupportedHost,
    check_range,
    check_tensor,
    warn_no_effect,
)
from reference_impls.contract.technique import (
    Handle,
    Invalid,
    Quantity,
    Redundancy,
    Setting,
    Specimen,
    Specimens,
    Technique,
    tensors,
)

__all__ = [
    "Handle",
    "Invalid",
    "NoEffectWarning",
    "Quantity",
    "Redundancy",
    "Setting",
    "Specimen",
    "Specimens",
    "Technique",
    "UnsupportedHost",
    "check_range",
    "check_tensor",
    "tensors",
    "warn_no_effect",
]
