"""The recipes that are compared: settings of headprune, each with the work that it reproduces."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Contender(NamedTuple):
    """A recipe in the bench.

    Args:
        settings: What it says; all else is the subject's.
        source: What it reproduces.
    """

    settings: Mapping[str, Any]
    source: str


OURS = "headprune"
CONTENDERS: dict[str, Contender] = {
    OURS: Contender({}, "the default"),
    "headprune, healed, 22 steps": Contender({"heal": 22}, "then 22 steps of 2,048 tokens"),
    "headprune, healed, 80 steps": Contender({"heal": 80}, "then 80 steps of 2,048 tokens"),
    "headprune, healed, 112 steps": Contender({"heal": 112}, "then 112 steps of 2,048 tokens"),
    "headprune, with a bias": Contender({"allow_bias": True}, "the same, `o_proj` may get one"),
    "michel": Contender({"recipe": "michel"}, "Michel et al. 2019"),
    "michel, no norm": Contender(
        {"method": "gradient", "steps": 1, "reconstruct": "none"}, "the same, layers not normalized"
    ),
    "run_bertology": Contender(
        {"method": "gradient:batch", "normalize": "layer", "steps": 1, "reconstruct": "none"},
        "transformers v4's script",
    ),
    "textpruner": Contender(
        {"method": "gradient:batch", "steps": 4, "reconstruct": "none"}, "TextPruner, 4 iterations"
    ),
    "kwon": Contender({"recipe": "kwon"}, "Kwon et al. 2022"),
    "flap": Contender({"recipe": "flap"}, "An et al. 2024"),
    "minitron": Contender({"recipe": "minitron"}, "Muralidharan et al. 2024"),
    "sink": Contender(
        {"method": "sink", "steps": 1, "reconstruct": "none"}, "attention to the first token"
    ),
    "magnitude": Contender(
        {"method": "magnitude", "steps": 1, "reconstruct": "none"}, "norm of W_O"
    ),
    "leave one out": Contender(
        {"method": "ablation", "steps": 1, "reconstruct": "none"},
        "the exact effect of each head alone",
    ),
    "random": Contender(
        {"method": "random", "steps": 1, "reconstruct": "none"}, "a seeded control"
    ),
}
UNTRAINED = [name for name, one in CONTENDERS.items() if "heal" not in one.settings]
"""What is measured unless others are named."""
