"""From scores, a budget and constraints to a plan."""

from headprune.planning.constraints import Target, target_of
from headprune.planning.costs import CostModel, Resources, cost_model, resources_of, savings
from headprune.planning.plan import make_plan, score_in_steps
from headprune.planning.problem import Problem, check_constraints

__all__ = [
    "CostModel",
    "Problem",
    "Resources",
    "Target",
    "check_constraints",
    "cost_model",
    "make_plan",
    "resources_of",
    "savings",
    "score_in_steps",
    "target_of",
]
