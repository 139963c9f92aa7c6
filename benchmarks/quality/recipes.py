"""The recipes that are compared: settings of headprune, each with the work that it reproduces."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from transformers import PreTrainedModel

from benchmarks.quality import merged, tried
from benchmarks.quality.subjects import Case
from headprune.anatomy.sites import Anatomy
from headprune.plans import HeadScores

Choose: TypeAlias = Callable[[Case, Anatomy, HeadScores, int], HeadScores]
Merge: TypeAlias = Callable[[Case, float], PreTrainedModel]


class Contender(NamedTuple):
    """A recipe in the bench.

    Args:
        settings: What it says; all else is the subject's.
        source: What it reproduces.
        choose: What chooses the heads instead of headprune's scores: ``choose(case, anatomy, scores, count)``.
        merge: What makes the smaller model instead, and removes no head: ``merge(case, keep)``.
        train: What trains the cut model, in place, instead of healing: ``train(case, model, anatomy)``.
        from_text: Whether it learns its text itself, token by token, instead of what the whole model says of it.
    """

    settings: Mapping[str, Any]
    source: str
    choose: Choose | None = None
    merge: Merge | None = None
    train: Callable[[Case, PreTrainedModel, Anatomy], None] | None = None
    from_text: bool = False


OURS = "headprune"
CONTENDERS: dict[str, Contender] = {
    OURS: Contender({}, "the default"),
    **{
        f"headprune, healed, {steps} steps": Contender(
            {"heal": steps}, f"the default, then {steps} steps of distillation"
        )
        for steps in (10, 22, 30, 80, 100, 112, 300)
    },
    "headprune, fine-tuned, 40 steps": Contender(
        {"heal": 40},
        "the default, then 40 steps on the text itself, as much as 30 with a teacher",
        from_text=True,
    ),
    "headprune, LoRA, 60 steps": Contender(
        {"heal": 60, "lora": 8},
        "the same by adapters of rank 8 on all linear layers; not for padded heads",
        from_text=True,
    ),
    "headprune, sublayer by sublayer": Contender(
        {},
        "the default, then each sublayer is trained for 30 steps to give the whole model's stream",
        train=tried.train_sublayers,
    ),
    "headprune, gates": Contender(
        {},
        "heads chosen by gates that are trained for 30 steps; the default's refit",
        choose=tried.budget_gates,
    ),
    **{
        name: Contender(
            {"method": "random", "steps": 1, "reconstruct": "none", **settings},
            f"no head goes; in some layers, key/value groups are merged into one{then}",
            merge=merged.merge_groups,
        )
        for name, then, settings in (
            ("headprune, groups merged", "", {}),
            (
                "headprune, groups merged, healed, 22 steps",
                "; then 22 steps of distillation",
                {"heal": 22},
            ),
        )
    },
    "osscar": Contender(
        {},
        "heads chosen as Meng et al. 2024 do, without swaps; the default's refit",
        choose=tried.osscar,
    ),
    "k-prune": Contender(
        {}, "heads chosen as Park et al. 2024 do; the default's refit", choose=tried.k_prune
    ),
    "headprune, with a bias": Contender(
        {"allow_bias": True}, "the default, and `o_proj` may get a bias"
    ),
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
UNTRAINED = [
    name
    for name, one in CONTENDERS.items()
    if not (one.settings.get("heal") or one.choose or one.merge or one.train)
]
"""What is measured unless others are named."""
