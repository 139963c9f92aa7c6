"""From scores, a budget and constraints to a plan."""

from headprune.selection.cost import parameters_removed
from headprune.selection.plan import Constraints, check_constraints, make_plan

__all__ = ["Constraints", "check_constraints", "make_plan", "parameters_removed"]
