"""From scores, a budget and constraints to a plan."""

from headprune.selection.cost import Savings, parameters_removed, savings
from headprune.selection.plan import Constraints, check_constraints, is_padded, make_plan

__all__ = [
    "Constraints",
    "Savings",
    "check_constraints",
    "is_padded",
    "make_plan",
    "parameters_removed",
    "savings",
]
