"""The only place where weights change."""

from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.fit import Way
from headprune.surgery.mend import WAYS, Mend, mend

__all__ = ["WAYS", "Mend", "Way", "cut", "dead_indices", "mend"]
