"""The only place that writes and reads models."""

from headprune.checkpoint.afresh import load_afresh
from headprune.checkpoint.auto_models import auto_class_of, auto_classes
from headprune.checkpoint.empty import empty_model
from headprune.checkpoint.legacy import pruned_heads
from headprune.checkpoint.load import complaints, load, load_model, load_shapes
from headprune.checkpoint.manifest import check_manifest, refuse_strangers, seal
from headprune.checkpoint.output import (
    output_directory,
    refuse_source,
    refuse_unusable_output,
)
from headprune.checkpoint.own_save import let_it_save_itself, own_save
from headprune.checkpoint.pickled import pickled_weights, rewritten
from headprune.checkpoint.save import (
    MAX_SHARD_SIZE,
    LoadMethod,
    described,
    stock_config,
    write_description,
    write_model,
)
from headprune.checkpoint.shards import differing, rewrite, stored_tensors
from headprune.checkpoint.side_files import root_of
from headprune.checkpoint.stream import Cut, changes, find_cuts, names_in_memory, wrong_cuts
from headprune.checkpoint.tied import untie_as_stored
from headprune.checkpoint.tokenizer_files import awkward_ids, home_of, tokenizer_of

__all__ = [
    "MAX_SHARD_SIZE",
    "Cut",
    "LoadMethod",
    "auto_class_of",
    "auto_classes",
    "awkward_ids",
    "changes",
    "check_manifest",
    "complaints",
    "described",
    "differing",
    "empty_model",
    "find_cuts",
    "home_of",
    "let_it_save_itself",
    "load",
    "load_afresh",
    "load_model",
    "load_shapes",
    "names_in_memory",
    "output_directory",
    "own_save",
    "pickled_weights",
    "pruned_heads",
    "refuse_source",
    "refuse_strangers",
    "refuse_unusable_output",
    "rewrite",
    "rewritten",
    "root_of",
    "seal",
    "stock_config",
    "stored_tensors",
    "tokenizer_of",
    "untie_as_stored",
    "write_description",
    "write_model",
    "wrong_cuts",
]
