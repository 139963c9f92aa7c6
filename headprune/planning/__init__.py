"""From scores, a budget and constraints to a plan."""

from headprune.planning.constraints import (
    Target,
    knee,
    last_within,
    target_of,
    with_role_heads,
)
from headprune.planning.costs import CostModel, cost_model, resources_of, savings
from headprune.planning.plan import make_plan, score_in_steps, with_roles
from headprune.planning.problem import check_constraints

__all__ = [
    "CostModel",
    "Target",
    "check_constraints",
    "cost_model",
    "knee",
    "last_within",
    "make_plan",
    "resources_of",
    "savings",
    "score_in_steps",
    "target_of",
    "with_role_heads",
    "with_roles",
]
