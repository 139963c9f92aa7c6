"""The only place that writes and reads models."""

from headprune.checkpoint.load import load, load_model
from headprune.checkpoint.manifest import check_manifest, seal
from headprune.checkpoint.save import Route, save, write_model

__all__ = ["Route", "check_manifest", "load", "load_model", "save", "seal", "write_model"]
