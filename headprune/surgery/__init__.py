"""The only place where weights change."""

from headprune.surgery.bias import Given, give_biases, take_back
from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.layer_counts import layer_counts
from headprune.surgery.named_heads import head_settings, named_heads
from headprune.surgery.reconstruct import WAYS, Judge, Look, Reconstruct, reconstruct

__all__ = [
    "WAYS",
    "Given",
    "Judge",
    "Look",
    "Reconstruct",
    "cut",
    "dead_indices",
    "give_biases",
    "head_settings",
    "layer_counts",
    "named_heads",
    "reconstruct",
    "take_back",
]
