"""The only place where weights change."""

from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.fit import Way
from headprune.surgery.mend import WAYS, Judge, Mend, mend

__all__ = ["WAYS", "Judge", "Mend", "Way", "cut", "dead_indices", "mend"]
