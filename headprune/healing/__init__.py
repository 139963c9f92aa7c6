"""Let a pruned model learn from the one it came from: our losses, transformers' Trainer."""

from headprune.healing.adapters import refuse_adapters
from headprune.healing.checkpoints import Checkpoints, last_checkpoint, open_checkpoints
from headprune.healing.loss import Distance, distance_between, mean_distance
from headprune.healing.settings import trainer_settings
from headprune.healing.train import Course, Heal, Trained, train

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
