"""The only place where weights change."""

from headprune.surgery.cut import cut
from headprune.surgery.mend import Mend, mend

__all__ = ["Mend", "cut", "mend"]
