"""From scores, a budget and constraints to a plan."""

from headprune.planning.budget import Constraints, Resource, Target
from headprune.planning.cost import Prices, Savings, counted, parameters_removed, savings, whole_of
from headprune.planning.knee import knee, last_within
from headprune.planning.plan import check_constraints, is_padded, least_heads, make_plan
from headprune.planning.steps import score_in_steps

__all__ = [
    "Constraints",
    "Prices",
    "Resource",
    "Savings",
    "Target",
    "check_constraints",
    "counted",
    "is_padded",
    "knee",
    "last_within",
    "least_heads",
    "make_plan",
    "parameters_removed",
    "savings",
    "score_in_steps",
    "whole_of",
]
