"""Let a pruned model learn from the one it came from: our losses, transformers' Trainer."""

from headprune.distillation.adapters import refuse_adapters
from headprune.distillation.checkpoints import Checkpoints, last_checkpoint, open_checkpoints
from headprune.distillation.loss import Distance, distance_between, mean_distance
from headprune.distillation.settings import trainer_settings
from headprune.distillation.train import Course, Heal, Trained, train

__all__ = [
    "Checkpoints",
    "Course",
    "Distance",
    "Heal",
    "Trained",
    "distance_between",
    "last_checkpoint",
    "mean_distance",
    "open_checkpoints",
    "refuse_adapters",
    "train",
    "trainer_settings",
]
