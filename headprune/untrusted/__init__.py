"""What comes from strangers, read within bounds: documents, a model's files, headers, configs; and what a directory is."""

from headprune.untrusted.documents import (
    SETTINGS,
    parse_json,
    parse_yaml,
    read_json,
    read_json_list,
    read_text,
    refuse_damaged_settings,
)
from headprune.untrusted.files import kind_if_special, lies_within, refuse_foreign_files
from headprune.untrusted.modules import MODULES, ModuleEntry, module_entries, transformer_folder
from headprune.untrusted.recognise import (
    code_of_its_own,
    code_of_the_tokenizer,
    own_files_alone,
    refuse_adapters,
    refuse_quantised_config,
    refuse_wrapped_names,
)
from headprune.untrusted.settings import check_settings, class_names
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
    "SETTINGS",
    "WHOLE",
    "Header",
    "ModuleEntry",
    "TensorEntry",
    "check_settings",
    "class_names",
    "code_of_its_own",
    "code_of_the_tokenizer",
    "damage",
    "kind_if_special",
    "lies_within",
    "module_entries",
    "own_files_alone",
    "parse_json",
    "parse_yaml",
    "read_header",
    "read_json",
    "read_json_list",
    "read_text",
    "refuse_adapters",
    "refuse_damaged_settings",
    "refuse_foreign_files",
    "refuse_quantised_config",
    "refuse_wrapped_names",
    "transformer_folder",
    "weight_files",
    "weight_names",
]
