"""The command line: one file per command; parse, call the pipeline, render."""

from headprune.cli.app import main

__all__ = ["main"]
