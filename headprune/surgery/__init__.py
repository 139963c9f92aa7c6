"""The only place where weights change."""

from headprune.surgery.cut import cut, dead_indices
from headprune.surgery.mend import Mend, mend

__all__ = ["Mend", "cut", "dead_indices", "mend"]
