"""The only place where weights change."""

from headprune.surgery.cut import cut

__all__ = ["cut"]
