"""What is known of families stands in one file."""

import ast
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import headprune
from headprune.anatomy import exceptions

PACKAGE = Path(headprune.__file__).parent
# Examples in a hint, names of files and of formats, and a limit for files that are read before anything heavy is imported.
ELSEWHERE = {
    "export/gguf.py": {"llama", "gpt2"},
    "export/layout.py": {"llama"},
    "models/find.py": {"bert", "gpt2", "llama"},
    "tasks/embedder.py": {
        "bert",
        "roberta",
        "distilbert",
        "camembert",
        "albert",
        "xlm-roberta",
        "xlnet",
    },
    "untrusted/settings.py": {"marian"},
}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_other_file_names_a_family(path):
    name = path.relative_to(PACKAGE).as_posix()
    if name == "anatomy/exceptions.py":
        return
    words = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert words & CONFIG_MAPPING_NAMES.keys() <= ELSEWHERE.get(name, set())


@pytest.mark.parametrize(
    ("kind", "expected"), [("block_sparse", True), ("original_full", False), (None, False)]
)
def test_why_rows_are_cut_is_told_of_block_sparse_attention_alone(kind, expected):
    settings = {"attention_type": kind, "num_random_blocks": 3, "block_size": 64}
    assert ("original_full" in exceptions.reads_in_blocks(settings.get)) == expected
