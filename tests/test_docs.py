"""The documents say what is there."""

import doctest
import importlib
import io
import json
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console

from benchmarks.gpu.check import _parser as gpu_check_options
from headprune.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What benchmarks and contracts write, and what is about launchers: with options of their own.
MEASURED = ("gpu", "performance", "quality", "reliability", "scaling", "support")
DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(path for path in (ROOT / "docs").glob("*.md") if path.stem not in MEASURED),
]
COMMANDS = {command.name for command in app.registered_commands}


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"headprune {name}" in README, name


def test_the_readme_is_a_first_page():
    assert len(README.splitlines()) <= 150
    prose = re.sub(r"```.*?```|<!-- demo -->.*?<!-- /demo -->", "", README, flags=re.S)
    for paragraph in prose.split("\n\n"):
        assert len(paragraph.strip().splitlines()) <= 4 or paragraph.strip().startswith("|"), (
            paragraph
        )


def test_every_page_is_linked_from_the_readme():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, path.name


def test_every_option_in_the_documents_exists():
    known = {"--help", "--version"}
    for command in typer.main.get_command(app).commands.values():
        known |= {
            name for option in command.params for name in (*option.opts, *option.secondary_opts)
        }
    known |= set(gpu_check_options()._option_string_actions)
    for path in DOCS:
        text = re.sub(r"pip install[^\n]*", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"^- Out:.*?(?=^- |^#|\Z)", "", text, flags=re.M | re.S)  # what was removed
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert option in known, f"{path.name}: {option}"


def test_every_link_to_a_file_leads_somewhere():
    for path in DOCS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_architecture_page_names_every_room():
    from test_architecture import ORDER

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in ORDER:
        assert f"`{room}" in page, room


def test_the_python_in_the_readme_runs(tmp_path, tokenizer):
    import torch
    from families import build, token_inputs
    from torch.nn.functional import cross_entropy

    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "hp.inspect" in b)
    batch = {**token_inputs(), "labels": torch.tensor([0, 1, 0, 1])}
    names = {
        "model": build("bert"),
        "inputs": token_inputs(),
        "batches": [batch],
        "loss": lambda outputs, b: cross_entropy(outputs.logits, b.targets, reduction="none"),
        "tokenizer": tokenizer,
    }
    exec(block.replace('"smaller"', repr(str(tmp_path / "smaller"))), names)
    assert names["model"].config.headprune["removed"]


def test_the_public_names_are_all_there():
    import headprune

    for name in headprune.__all__:
        assert getattr(headprune, name) is not None
    with pytest.raises(AttributeError):
        headprune.nothing  # noqa: B018


def modules():
    for path in sorted((ROOT / "headprune").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            yield ".".join(parts)


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_heatmap_shows_what_is_removed():
    from headprune.heads import HeadId, SiteId
    from headprune.plans import HeadScores, PruningPlan
    from headprune.report.heads import heatmap, score_table

    heads = [HeadId(SiteId("", layer), head) for layer in range(2) for head in range(3)]
    scores = HeadScores(
        method="gradient",
        heads=heads,
        values=[3, 1, 2, 6, 5, 4],
        standard_errors=[0.5] * 6,
        n=7,
        seed=0,
    )
    plan = PruningPlan(remove=(heads[1],), kept_per_site={"L0": 2, "L1": 3})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(heatmap(scores, plan), score_table(scores))

    text = console.export_text()
    assert "removed (1 of 6)" in text
    assert text.count("×") == 2
    assert "L0.H1" in text
    assert "1 ± 0.5" in text


def test_the_baseline_of_the_demo_is_one():
    from headprune.gate import read_baseline

    baseline = read_baseline(ROOT / "configs" / "demo-baseline.json")
    assert baseline.value == pytest.approx(0.8203, abs=0.0005)
    assert json.loads(baseline.to_json())["n"] == 1379
