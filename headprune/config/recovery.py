"""Sections of what makes up for removed heads: reconstruction in closed form, and training."""

from typing import Literal

from headprune.config.fields import MOST, Pairs, Section, Steps, option


class ReconstructSpec(Section):
    """How the kept heads make up for the removed ones."""

    reconstruct: Literal["none", "best", "scale", "bias", "refit"] | None = option(
        None,
        "Make the kept heads do what all did, in closed form: scale them, move the bias, refit the output projections; best "
        "tries bias and refit. Kept only if held-out rows improve. (default: refit)",
    )
    allow_bias: bool = option(
        False,
        "Where output projections have no bias and the family knows one (Llama, Qwen3), reconstruction may create it.",
    )


class DistillSpec(Section):
    """How a pruned model learns from its source."""

    heal: Steps = option(
        None,
        "After cutting, train so many steps towards the whole model's outputs, without labels; auto: as many as take three "
        "times as long as scoring. Kept only if held-out rows improve.",
        metavar="auto|N|none",
    )
    heal_weights: Literal["all", "attention"] = option(
        "all", "What is trained: all weights, or those of the attentions, which takes less memory."
    )
    heal_data: str | None = option(
        None,
        "Texts to train on. (default: rows of --data that neither report nor decide)",
        metavar="FILE|HUB_ID[:CONFIG]",
    )
    heal_split: str | None = option(None, "Split of --heal-data. (default: train)")
    teacher: str | None = option(
        None, "The model it learns from. (default: the one it was pruned from)", metavar="MODEL"
    )
    epochs: float = option(3, "How often the rows are trained on.", gt=0)
    max_steps: int | None = option(None, "Steps of the optimizer, whatever the epochs.", ge=1)
    learning_rate: float | None = option(
        None, "Of the optimizer. (default: by command and by what is trained)", gt=0
    )
    lora: int | None = option(
        None,
        "Train adapters of this rank, merged at the end. (default: the weights themselves)",
        metavar="RANK",
        ge=1,
        le=MOST,
    )
    trainer: Pairs = option(
        (), "Any other of transformers.TrainingArguments; repeatable.", metavar="KEY=VALUE"
    )
