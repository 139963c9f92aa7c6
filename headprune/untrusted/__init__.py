"""What comes from strangers, read within bounds: documents, the files of a model's directory, weights' headers, configs."""

from headprune.untrusted.documents import parse_json, parse_yaml, read_json, read_text
from headprune.untrusted.files import kind_if_special, lies_within, refuse_foreign_files
from headprune.untrusted.settings import check_settings, class_names
from headprune.untrusted.weights import (
    INDEX,
    WHOLE,
    Header,
    TensorEntry,
    damage,
    indexed_files,
    read_header,
)

__all__ = [
    "INDEX",
    "WHOLE",
    "Header",
    "TensorEntry",
    "check_settings",
    "class_names",
    "damage",
    "indexed_files",
    "kind_if_special",
    "lies_within",
    "parse_json",
    "parse_yaml",
    "read_header",
    "read_json",
    "read_text",
    "refuse_foreign_files",
]
