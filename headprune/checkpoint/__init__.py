"""The only place that writes and reads models."""

from headprune.checkpoint.afresh import load_afresh
from headprune.checkpoint.empty import empty_model
from headprune.checkpoint.legacy import pruned_heads
from headprune.checkpoint.load import complaints, load, load_model, load_shapes
from headprune.checkpoint.manifest import check_manifest, refuse_strangers, seal
from headprune.checkpoint.output import (
    output_directory,
    refuse_source,
    refuse_unusable_output,
)
from headprune.checkpoint.save import (
    MAX_SHARD_SIZE,
    Route,
    auto_class_of,
    save,
    stock_config,
    write_description,
    write_model,
)
from headprune.checkpoint.shards import differing, rewrite, stored_tensors
from headprune.checkpoint.side_files import source_of
from headprune.checkpoint.stream import Cut, changes, find_cuts, names_in_memory, wrong_cuts
from headprune.checkpoint.tied import untie_as_stored

__all__ = [
    "MAX_SHARD_SIZE",
    "Cut",
    "Route",
    "auto_class_of",
    "changes",
    "check_manifest",
    "complaints",
    "differing",
    "empty_model",
    "find_cuts",
    "load",
    "load_afresh",
    "load_model",
    "load_shapes",
    "names_in_memory",
    "output_directory",
    "pruned_heads",
    "refuse_source",
    "refuse_strangers",
    "refuse_unusable_output",
    "rewrite",
    "save",
    "seal",
    "source_of",
    "stock_config",
    "stored_tensors",
    "untie_as_stored",
    "write_description",
    "write_model",
    "wrong_cuts",
]
