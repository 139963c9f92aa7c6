"""What comes from strangers, read within bounds: documents, the files of a model's directory, weights' headers, configs."""

from headprune.untrusted.documents import (
    parse_json,
    parse_yaml,
    read_json,
    read_json_list,
    read_text,
)
from headprune.untrusted.files import kind_if_special, lies_within, refuse_foreign_files
from headprune.untrusted.modules import MODULES, ModuleEntry, module_entries, transformer_folder
from headprune.untrusted.settings import check_settings
from headprune.untrusted.weights import (
    INDEX,
    WHOLE,
    Header,
    TensorEntry,
    damage,
    read_header,
    weight_files,
    weight_names,
)

__all__ = [
    "INDEX",
    "MODULES",
    "WHOLE",
    "Header",
    "ModuleEntry",
    "TensorEntry",
    "check_settings",
    "damage",
    "kind_if_special",
    "lies_within",
    "module_entries",
    "parse_json",
    "parse_yaml",
    "read_header",
    "read_json",
    "read_json_list",
    "read_text",
    "refuse_foreign_files",
    "transformer_folder",
    "weight_files",
    "weight_names",
]
