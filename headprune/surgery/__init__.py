"""The only place where weights change."""

from headprune.surgery.bias import Given, give_biases, take_back
from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.mend import WAYS, Judge, Look, Mend, mend

__all__ = [
    "WAYS",
    "Given",
    "Judge",
    "Look",
    "Mend",
    "cut",
    "dead_indices",
    "give_biases",
    "mend",
    "take_back",
]
