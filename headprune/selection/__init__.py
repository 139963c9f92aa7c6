"""From scores, a budget and constraints to a plan."""

from headprune.selection.budget import Constraints, Target
from headprune.selection.cost import Prices, Savings, parameters_removed, prices, savings
from headprune.selection.plan import check_constraints, is_padded, make_plan
from headprune.selection.steps import score_in_steps

__all__ = [
    "Constraints",
    "Prices",
    "Savings",
    "Target",
    "check_constraints",
    "is_padded",
    "make_plan",
    "parameters_removed",
    "prices",
    "savings",
    "score_in_steps",
]
