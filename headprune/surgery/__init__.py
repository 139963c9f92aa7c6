"""The only place where weights change."""

from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.mend import WAYS, Judge, Look, Mend, mend

__all__ = ["WAYS", "Judge", "Look", "Mend", "cut", "dead_indices", "mend"]
