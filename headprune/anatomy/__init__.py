"""Where the heads of a model are: asked of a tiny random clone of its class, then found in the model itself."""

from headprune.anatomy.locate import locate
from headprune.anatomy.ownership import Pattern
from headprune.anatomy.probe import Probe, probe
from headprune.anatomy.sites import Anatomy, Execution, Run, Site, Slice

__all__ = [
    "Anatomy",
    "Execution",
    "Pattern",
    "Probe",
    "Run",
    "Site",
    "Slice",
    "locate",
    "probe",
]
