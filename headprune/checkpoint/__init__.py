"""The only place that writes and reads models."""

from headprune.checkpoint.empty import empty_model
from headprune.checkpoint.legacy import pruned_heads
from headprune.checkpoint.load import load, load_model
from headprune.checkpoint.manifest import check_manifest, seal
from headprune.checkpoint.save import MAX_SHARD_SIZE, Route, save, stock_config, write_model

__all__ = [
    "MAX_SHARD_SIZE",
    "Route",
    "check_manifest",
    "empty_model",
    "load",
    "load_model",
    "pruned_heads",
    "save",
    "seal",
    "stock_config",
    "write_model",
]
