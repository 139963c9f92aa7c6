"""The only place where weights change."""

from headprune.surgery.bias import Given, give_biases, take_back
from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.layer_counts import layer_counts
from headprune.surgery.mend import WAYS, Judge, Look, Mend, mend
from headprune.surgery.named_heads import head_settings, named_heads

__all__ = [
    "WAYS",
    "Given",
    "Judge",
    "Look",
    "Mend",
    "cut",
    "dead_indices",
    "give_biases",
    "head_settings",
    "layer_counts",
    "mend",
    "named_heads",
    "take_back",
]
