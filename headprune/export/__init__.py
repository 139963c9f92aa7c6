"""Write a model for engines that don't read transformers directories."""

from headprune.export.gguf import Exported, embedding_rows, export_gguf, refuse_unusable_file
from headprune.export.layout import refuse_family
from headprune.export.vocabulary import read_vocabulary

__all__ = [
    "Exported",
    "embedding_rows",
    "export_gguf",
    "read_vocabulary",
    "refuse_family",
    "refuse_unusable_file",
]
