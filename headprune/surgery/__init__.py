"""Cut heads, and reconstruct what is left. Beside training, the only place where weights change."""

from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.head_settings import (
    head_settings,
    layer_counts,
    named_heads,
    settings_by_layer,
)
from headprune.surgery.reconstruct import (
    RECONSTRUCT_METHODS,
    AddedBiases,
    HeldOut,
    Measured,
    add_zero_biases,
    reconstruct,
    remove_biases,
)

__all__ = [
    "RECONSTRUCT_METHODS",
    "AddedBiases",
    "HeldOut",
    "Measured",
    "add_zero_biases",
    "cut",
    "dead_indices",
    "head_settings",
    "layer_counts",
    "named_heads",
    "reconstruct",
    "remove_biases",
    "settings_by_layer",
]
